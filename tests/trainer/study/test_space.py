"""Dimensions of a search: lists and ranges in the words of plans and of the command line."""

from __future__ import annotations

import pytest

from models.errors import UserError
from trainer.study.space import dimension, points, values_of


@pytest.mark.parametrize(
    ("text", "share", "value"),
    [
        ("0.1..0.5", 0.25, 0.2),
        ("log:1e-4..1e-2", 0.5, 1e-3),
        ("1..8", 0.0, 1),
        ("1..8", 0.999, 8),
        ("-2..2", 0.5, 0),
        ("a,b,c", 0.5, "b"),
        ([32, 64], 0.999, 64),
        ("0..0.9", 0.5, 0.45),
    ],
)
def test_a_share_of_a_dimension_is_a_value(text: str | list[int], share: float, value: object) -> None:
    found = dimension("k", text).at(share)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["2..1", "1..1", "log:0..1", "log:-1..1", "1..inf", "1..x", "1,,2", "", []])
def test_what_is_no_dimension_is_refused_by_its_key(text: str | list[int]) -> None:
    with pytest.raises(UserError, match=r"model\.x"):
        dimension("model.x", text)


def test_listed_values_are_read_as_yaml() -> None:
    assert values_of("k", "1,0.5,true,[1, 2],a") == [1, 0.5, True, [1, 2], "a"]


def test_points_fill_the_space_and_stay_when_there_are_more() -> None:
    space = {"a": dimension("a", "0.0..1.0"), "b": dimension("b", "log:0.001..1")}
    some, more = points(space, 5, seed=0), points(space, 8, seed=0)
    assert some == more[:5]
    # each eighth of a dimension has one of eight points
    assert sorted(int(8 * point["a"]) for point in more) == list(range(8))
    assert all(0.001 <= point["b"] <= 1 for point in more)
    assert points(space, 8, seed=1) != more
