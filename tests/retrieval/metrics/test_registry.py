"""Metrics by name, and the choice of metrics and list lengths."""

import pytest

from models.errors import UserError
from retrieval.metrics.registry import METRICS, MetricChoice, parse_key


def test_keys_are_k_by_k() -> None:
    choice = MetricChoice(("MRR", "Coverage"), (5, 1))
    assert choice.keys == ("MRR@5", "Coverage@5", "MRR@1", "Coverage@1")
    assert (list(choice.rank_metrics()), list(choice.list_metrics())) == (["MRR"], ["Coverage"])


@pytest.mark.parametrize(
    ("names", "ks", "says"),
    [
        (("HR", "NDGC"), (10,), "unknown metric 'NDGC': did you mean 'NDCG'"),
        ((), (10,), "metrics: name at least one, and each once"),
        (("HR", "HR"), (10,), "metrics: name at least one, and each once .given: HR, HR"),
        (("HR",), (), "ks: name at least one"),
        (("HR",), (10, 5, 10), "ks: name at least one, and each once .given: 10, 5, 10"),
        (("HR",), (5, 0), "ks: 0 is not the length of a list"),
    ],
)
def test_a_wrong_choice_is_refused(names: tuple[str, ...], ks: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MetricChoice(names, ks)


def test_keys_are_read_back() -> None:
    assert all(parse_key(f"{name}@{k}") == (name, k) for name in METRICS for k in (1, 250))
    for other in ("users", "HR", "HR@", "HR@0", "HR@-1", "HR@1.5", "HR@\u0663", "@10", "hr@10"):
        assert parse_key(other) is None
