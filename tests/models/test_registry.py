"""The registry: entries by name."""

from __future__ import annotations

import pytest

from models.errors import UserError
from models.registry import Registry, nearest, refuse_misspelt


def test_entries_keep_their_order_and_are_found_by_name() -> None:
    registry = Registry("fruit", {"pear": 1, "apple": 2})
    registry.register("fig", 3)
    assert list(registry) == ["pear", "apple", "fig"]
    assert len(registry) == 3
    assert registry["fig"] == 3
    assert "fig" in registry
    registry.unregister("fig")
    assert "fig" not in registry


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    registry = Registry("fruit", {"pear": 1, "apple": 2})
    with pytest.raises(UserError, match=r"unknown fruit 'aple': did you mean 'apple'\?"):
        registry["aple"]
    with pytest.raises(UserError, match=r"unknown fruit 'x': known: apple, pear"):
        registry["x"]


def test_no_entry_is_replaced_unseen() -> None:
    registry = Registry("fruit", {"pear": 1})
    with pytest.raises(ValueError, match="fruit 'pear' is registered already"):
        registry.register("pear", 2)
    assert registry["pear"] == 1


def test_nearest_names_everything_where_nothing_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_a_name_that_is_almost_known_is_refused_and_others_are_not() -> None:
    with pytest.raises(UserError, match="unknown encoder 'bertt': did you mean 'bert'"):
        refuse_misspelt("encoder", "bertt", ("bert", "glove"))
    for name in ("bert", "google-bert/bert-base-uncased", "bert-base-uncased", "/models/bert"):
        refuse_misspelt("encoder", name, ("bert", "glove"))
