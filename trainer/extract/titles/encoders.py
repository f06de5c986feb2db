"""Titles to vectors: BERT's [CLS] (the paper, on MicroLens), GloVe (on Shortvideo), MiniLM, or any text encoder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from models.registry import refuse_misspelt
from trainer.extract.pipeline.protocols import TitleEncoder
from trainer.extract.titles import glove
from trainer.extract.titles.minilm import ENCODER, SentenceModel, minilm_package, segments, token_means

_BERT = "google-bert/bert-base-uncased"
_BATCH = 32
#: most tokens of a title, for an encoder that sets no limit itself
_LONGEST = 512
_EXACT = {"dtype": torch.float32, "use_safetensors": True}

#: vectors (n, H) of n texts, and their layer states (n, S, H) where the encoder was loaded for them
Encode = Callable[[list[str]], tuple[NDArray[np.float32], NDArray[np.float32] | None]]


def describe(name: str, layers: bool) -> str:
    """What encodes the titles, in words for the manifest; reads no weights.

    name: bert, glove, minilm, or a transformers text encoder or sentence-transformers model by hub name or folder.
    Raises UserError: the encoder cannot work (not found, not a text encoder, no tokenizer, a package is missing, or it
    has no `layers`).
    """
    if name == "glove":
        if layers:
            raise UserError("--layers keeps the states of a network, and the encoder glove is none; leave --layers out")
        glove.folder()
        return f"{glove.PACKAGE} (mean of the tokens)"
    if name == "minilm":
        minilm_package()
        return ENCODER
    refuse_misspelt("encoder", name, ("bert", "glove", "minilm"))  # the hub would be asked for half a minute
    source = _BERT if name == "bert" else name
    modules = _modules(source)
    if modules is None:
        _tokenizer(source)
        return f"{source} ([CLS] of the last hidden state)"
    if layers and not modules[0]["type"].endswith(".Transformer"):
        raise UserError(f"the encoder {name} has no layers ({modules[0]['type']}); leave --layers out")
    return f"{source} (sentence-transformers)"


def load(name: str, n_segments: int | None, layers: bool, device: str, threads: int | None) -> TitleEncoder:
    """The encoder `name` of `describe`, in float32 on `device`, with `threads` CPU threads (None: torch's own choice).

    n_segments: also so many windows over each title's words, encoded like titles. layers: also the mean of every hidden
    state over the text's tokens. Raises UserError: as `describe`, and weights that are missing or do not fit.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    describe(name, layers)
    return _Titles(_encoder(_BERT if name == "bert" else name, layers, device), n_segments)


def zero_rows_are_mean(name: str) -> bool:
    """Whether a vector of zeros stands for a title without a known word, to be replaced by the mean over the others."""
    return name == "glove"


class _Titles:
    """Fields of titles from an encoder of texts; equal texts are encoded once."""

    def __init__(self, encode: Encode, n_segments: int | None) -> None:
        self._encode, self._n_segments = encode, n_segments or 0

    def __call__(self, titles: list[str]) -> dict[ContentField, NDArray[np.float32]]:
        count = self._n_segments
        windows = [window for title in titles for window in (segments(title, count) if count else [])]
        distinct = sorted(dict.fromkeys(titles + windows), key=len)  # little padding within a batch
        number = {words: row for row, words in enumerate(distinct)}
        title = np.asarray([number[words] for words in titles])
        vectors, states = self._encode(distinct)
        fields: dict[ContentField, NDArray[np.float32]] = {"text": vectors[title]}
        if states is not None:
            fields["text_layers"] = states[title]
        if count:
            window = np.asarray([number[words] for words in windows]).reshape(len(titles), count)
            fields["sequence"] = vectors[window]
            fields["visual"] = fields["sequence"].mean(axis=1)
            if states is not None:
                fields["visual_layers"] = states[window].mean(axis=1)
        return fields


class _FirstToken:
    """A transformers text encoder and its vector of a text: the first token, [CLS], of the last hidden state."""

    def __init__(self, source: str, layers: bool, device: str) -> None:
        self._layers, self._device = layers, device
        self._tokenizer = _tokenizer(source)
        self._model = _weights(_transformers().AutoModel, source).to(device)
        self._longest = _longest(self._tokenizer, self._model)

    def __call__(self, texts: list[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        vectors, states = [], []
        for at in range(0, len(texts), _BATCH):
            inputs = self._tokenizer(
                texts[at : at + _BATCH], padding=True, truncation=True, max_length=self._longest,
                return_token_type_ids=False, return_tensors="pt",
            ).to(self._device)  # fmt: skip
            with torch.inference_mode():
                out = self._model(**inputs, output_hidden_states=self._layers)
                vectors.append(out.last_hidden_state[:, 0].cpu().numpy())
                if self._layers:
                    states.append(token_means(out.hidden_states, inputs["attention_mask"]))
        return np.concatenate(vectors), np.concatenate(states) if self._layers else None


def _encoder(source: str, layers: bool, device: str) -> Encode:
    if source == "glove":
        words = glove.GloVe()
        return lambda texts: (words.encode(texts), None)
    _transformers()
    if source == "minilm":
        model = SentenceModel.minilm(device)
    elif _modules(source) is None:
        return _FirstToken(source, layers, device)
    else:
        model = SentenceModel(_sentence_transformer(source, device))
    return lambda texts: model.encode(texts, layers)


def _sentence_transformer(source: str, device: str) -> Any:
    import sentence_transformers

    with _opening(source):
        model = sentence_transformers.SentenceTransformer(source, device=device, model_kwargs=_EXACT)
    for path, module in zip([entry["path"] for entry in _modules(source) or []], model, strict=True):
        if hasattr(module, "auto_model"):
            _weights(type(module.auto_model), source, subfolder=path)  # only to find out which weights are missing
    return model


def _weights(model_class: Any, source: str, **where: str) -> Any:
    with _opening(source):
        model, found = model_class.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **_EXACT, **where
        )
    # only the last hidden state is used, and the pooler comes after it
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"the encoder {source}: {len(missing)} of its weights are missing and would be random "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); take the complete model"
        )
    return model


def _tokenizer(source: str) -> Any:
    """The tokenizer of a text encoder with a [CLS] token in front; UserError for any other model."""
    transformers = _transformers()
    with _opening(source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    reads_both_ways = not getattr(config, "is_decoder", False) and not getattr(config, "is_encoder_decoder", False)
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING or not reads_both_ways:
        raise UserError(
            f"the encoder {source}: {config.model_type} is no text encoder with a [CLS] token, such as BERT, RoBERTa "
            "or MPNet; for others give a sentence-transformers model, which brings its own pooling"
        )
    with _opening(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        first = tokenizer("a title")["input_ids"][0]
    # transformers returns a tokenizer without words when files are missing
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"the encoder {source} has no tokenizer; put its files there (tokenizer.save_pretrained)")
    if first != tokenizer.cls_token_id or tokenizer.pad_token_id is None:
        raise UserError(f"the encoder {source}: its tokenizer puts no [CLS] in front, or cannot pad; take another")
    tokenizer.padding_side = "right"
    return tokenizer


def _longest(tokenizer: Any, model: Any) -> int:
    """How many tokens the model takes."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _LONGEST)]
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding):
            # RoBERTa counts positions from behind its padding index
            limits.append(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    return int(min(limits))


def _modules(source: str) -> list[dict[str, str]] | None:
    """What a sentence-transformers model is made of; None for a plain transformers model."""
    if not Path(source).is_dir() and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise UserError(f"the encoder {source}: there is no such folder")
    _transformers()
    with _opening(source):
        found = None if source == _BERT else _modules_file(source)
        if found is None:
            return None
        modules: list[dict[str, str]] = json.loads(found.read_text(encoding="utf-8"))
        kinds = [module["type"] for module in modules]
        if not kinds:
            raise ValueError("modules.json lists none")
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise UserError(f"the encoder {source} brings code of its own ({foreign[0]}), which is not run; take another")
    return modules


def _modules_file(source: str) -> Path | None:
    from huggingface_hub import constants, errors, hf_hub_download

    if Path(source).is_dir():
        path = Path(source, "modules.json")
        return path if path.exists() else None
    try:
        return Path(hf_hub_download(source, "modules.json"))
    except errors.EntryNotFoundError as error:
        # without a network it is unknown whether the file exists; only with HF_HUB_OFFLINE=1 does the cache decide
        if isinstance(error, errors.LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise
        return None


def _transformers() -> Any:
    """The package transformers, with its log messages and loading bars switched off."""
    try:
        import sentence_transformers  # noqa: F401 - the extra that brings transformers brings both
        import transformers
    except ImportError as error:
        raise UserError(f"text encoders need transformers ({error}): pip install 'mealrec[text]'") from None
    notes: Any = transformers.logging
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def _opening(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # parsers and the hub's client have their own; all mean that it cannot be used
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the encoder {source} cannot be loaded ({reason}); give the hub name of a text encoder (needs the "
            "network, or HF_HUB_OFFLINE=1 and an earlier download) or a folder with config.json, tokenizer and "
            "model.safetensors"
        ) from None
