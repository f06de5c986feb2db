"""Reads a checkpoint's folder: every file that its manifest lists, with its recorded length and hash, or nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from torch import Tensor

from models.row_share import RowShare
from retrieval.files import digest
from trainer.training.checkpoint_files import MANIFEST, SCHEMA_VERSION, STATE, TENSORS
from trainer.training.row_parts import Joined, all_there, part_of

#: names of groups of tensors
GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Checkpoint:
    """The content of the checkpoint of `step`: tensors on the CPU by group and name, and the JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint folder that must not be loaded; the message names the file and what is wrong with it."""


def read(folder: Path, step: int, share: RowShare | None, *, every_file: bool) -> Checkpoint:
    """Read a checkpoint. share: the rows to keep of tables that are in parts; None: all, as of other tables.

    every_file: also verify parts that have no rows of `share`. Raises DamagedError unless every file is there, with its
    recorded length and hash.
    """
    manifest_path = folder / MANIFEST
    manifest = _decode_json(manifest_path, _read_bytes(manifest_path))
    entries = manifest.get("files")
    if manifest.get("schema_version") != SCHEMA_VERSION or manifest.get("step") != step:
        raise DamagedError(f"{manifest_path} is not of schema version {SCHEMA_VERSION} and step {step}")
    if not isinstance(entries, dict) or STATE not in entries or not all_there(map(_group, entries)):
        raise DamagedError(f"{manifest_path} does not list the files")
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    joined = Joined(share)
    for name, entry in entries.items():
        part = part_of(_group(name))
        if part is not None and not every_file and not joined.needs(part):
            continue
        data = _read_verified(folder, name, entry)
        if name == STATE:
            state = _decode_json(folder / name, data)
        elif part is None:
            tensors[_group(name)] = _decode_tensors(folder / name, data)
        elif joined.needs(part):
            joined.add(part, _decode_tensors(folder / name, data))
    for group, tables in joined.tables().items():
        if group in tensors:  # an optimizer's state that is being removed goes before its parts
            tensors[group] |= tables
    return Checkpoint(step, tensors, state)


def _group(name: str) -> str:
    return name.removesuffix(TENSORS)


def _read_verified(folder: Path, name: str, entry: object) -> bytes:
    path = folder / name
    if name != STATE and not (name.endswith(TENSORS) and GROUP.fullmatch(_group(name))):
        raise DamagedError(f"{folder / MANIFEST} lists {name!r}, which is not a file of a checkpoint")
    data = _read_bytes(path)
    if not isinstance(entry, dict) or len(data) != entry.get("bytes"):
        raise DamagedError(f"{path} has {len(data)} bytes, which is not the number in the manifest")
    if digest(data) != entry.get("sha256"):
        raise DamagedError(f"{path} does not have the SHA-256 of the manifest")
    return data


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error


def _decode_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and 200,000 brackets included
        raise DamagedError(f"{path} is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise DamagedError(f"{path} is not a JSON object")
    return decoded


def _decode_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(decode_tensors(data))
    except SafetensorError as error:
        raise DamagedError(f"{path} is not a safetensors file: {error}") from error
