"""A small text encoder of a real class with a real WordPiece tokenizer, saved in a folder like a downloaded model."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase, digits

import torch
import transformers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
#: every Latin word can be spelled letter by letter; some words and endings have their own token
VOCABULARY = [
    *SPECIAL, *"#!?.,'", *ascii_lowercase, *digits, *(f"##{sign}" for sign in ascii_lowercase + digits),
    "red", "cat", "dog", "cook", "dance", "how", "to", "the", "a", "##ing", "##s",
]  # fmt: skip
WIDTH, LAYERS, POSITIONS = 16, 2, 24


def small_config(kind: str = "bert", **changes: object) -> transformers.PretrainedConfig:
    """The configuration of a text encoder of model type `kind` for VOCABULARY."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 32}
    # large enough that attention and vectors differ between texts
    sizes |= {"initializer_range": 0.3, "max_position_embeddings": POSITIONS, "vocab_size": len(VOCABULARY)}
    return transformers.AutoConfig.for_model(kind, **sizes | {"pad_token_id": 0} | changes)


def save_small_tokenizer(folder: Path, limit: int | None = None) -> None:
    """A WordPiece tokenizer over VOCABULARY. limit: its model_max_length, by default not written."""
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    options = {} if limit is None else {"model_max_length": limit}
    transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, **options).save_pretrained(folder)


def save_small_text(folder: Path, kind: str = "bert", seed: int = 0, **changes: object) -> Path:
    """A text encoder with random weights and its tokenizer in `folder`: WIDTH wide, LAYERS deep, POSITIONS tokens."""
    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    transformers.AutoModel.from_config(small_config(kind, **changes)).save_pretrained(folder)
    save_small_tokenizer(folder)
    return folder
