"""Index files that were made to do harm: their checksums are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from retrieval.files import digest
from retrieval.index.build import build_index, load_index

CHECKSUM = "a" * 64


def save(items: int, folder: Path) -> Path:
    """An index of random vectors of width 16, padding not counted; returns the file of FAISS."""
    vectors = np.random.default_rng(0).normal(size=(items + 1, 16)).astype(np.float32)
    build_index(vectors, "flat", checksum=CHECKSUM, device="cpu", threads=1).save(folder)
    return folder / "index.faiss"


def test_an_index_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """FAISS would reserve 8 GB, or find items that are not there."""
    file, record = save(59, tmp_path), tmp_path / "index.json"
    whole, noted = file.read_bytes(), json.loads(record.read_bytes())
    at = whole.index((59 * 16).to_bytes(8, "little"))  # the number of floats, before them
    other = save(49, tmp_path / "other").read_bytes()
    huge, damaged = whole[:at] + (1 << 31).to_bytes(8, "little") + whole[at + 8 :], r"index\.faiss is damaged \("
    for data, message in ((huge, damaged), (whole[:100], damaged), (b"", damaged), (other, "not of one index")):
        file.write_bytes(data)
        record.write_text(json.dumps({**noted, "file_sha256": digest(data)}), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_index(tmp_path, CHECKSUM, np.zeros((60, 16), np.float32))
