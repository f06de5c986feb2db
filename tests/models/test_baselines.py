"""Baselines: each against loops in float64, independence of the batch, and mistakes of users."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.baselines import transitions, words_of
from models.contract import Baseline, Batch, ModelContext, TrainingInteractions
from models.errors import UserError
from models.options.base import ContentField
from models.systems import options_of
from tests.helpers.model_fixtures import HISTORIES, ITEMS, MISSING, item_table, make_batch, make_system, model_context

BASELINES = ["popularity", "transition-knn", "tfidf-knn", "content-knn"]
SEQUENCES = [[1, 2, 3, 2], [5], [1, 2, 9], [3, 1, 1, 4, 2, 6, 7], [2, 3]]
TITLES = ["Red red Car", "blue car!", None, "", "Éclair RED", "...", "car", "猫の car", "blue blue blue", None, "x"]


def interactions(sequences: Sequence[Sequence[int]]) -> TrainingInteractions:
    length = torch.tensor([0] + [len(s) for s in sequences])
    return TrainingInteractions(
        length.cumsum(0), torch.tensor([item for s in sequences for item in s], dtype=torch.int64)
    )


def context() -> ModelContext:
    return replace(model_context(), interactions=interactions(SEQUENCES), titles=TITLES)


def baseline(name: str, options: Mapping[str, object] | None = None, data: ModelContext | None = None) -> Baseline:
    made = make_system(name, options or {}, data or context())
    assert isinstance(made, Baseline)
    return made


def popularity() -> list[float]:
    counts = Counter(item for sequence in SEQUENCES for item in sequence)
    return [float(counts[item]) for item in range(ITEMS)]


def similarity_to_history(history: Sequence[int], recency: float, similar: Mapping[tuple[int, int], float]) -> Tensor:
    weight = [(k + 1) ** -recency for k in range(len(history))]
    total = sum(weight)
    return torch.tensor(
        [
            sum(w / total * similar.get((item, other), 0.0) for w, item in zip(weight, reversed(history), strict=True))
            for other in range(ITEMS)
        ],
        dtype=torch.float64,
    )


def transition_counts(window: int, distance: float) -> dict[tuple[int, int], float]:
    counts: dict[tuple[int, int], float] = defaultdict(float)
    for sequence in SEQUENCES:
        for i, first in enumerate(sequence):
            for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
                counts[first, sequence[j]] += (j - i) ** -distance
    return counts


def transition_scores(history: Sequence[int], window: int, distance: float, recency: float) -> Tensor:
    counts = transition_counts(window, distance)
    out, into = defaultdict(float), defaultdict(float)
    for (i, j), value in counts.items():
        out[i] += value
        into[j] += value
    similar = {(i, j): value / math.sqrt(out[i] * into[j]) for (i, j), value in counts.items()}
    scores, popular = similarity_to_history(history, recency, similar), popularity()
    for item in range(ITEMS):
        if scores[item] == 0:
            scores[item] = popular[item] / max(popular) - 1
    return scores


def title_scores(history: Sequence[int], recency: float) -> Tensor:
    # written out by hand, so that the tokeniser is tested too
    words = {
        1: ["red", "red", "car"], 2: ["blue", "car"], 5: ["éclair", "red"], 7: ["car"], 8: ["猫", "の", "car"],
        9: ["blue"] * 3, 11: ["x"],
    }  # fmt: skip
    df = Counter(word for title in words.values() for word in set(title))
    vectors = {
        item: {w: (1 + math.log(c)) * (math.log(8 / (1 + df[w])) + 1) for w, c in Counter(title).items()}
        for item, title in words.items()
    }
    norm = {item: math.sqrt(sum(x * x for x in v.values())) for item, v in vectors.items()}
    similar = {
        (i, j): sum(v * vectors[j].get(w, 0.0) for w, v in vectors[i].items()) / norm[i] / norm[j]
        for i in words for j in words
    }  # fmt: skip
    return similarity_to_history(history, recency, similar)


def content_scores(history: Sequence[int], recency: float, field: ContentField) -> Tensor:
    mean, deviation = item_table().moments(field)
    content = ((item_table().gather(field, torch.arange(ITEMS)) - mean) / deviation).double()
    similar = {
        (i, j): float(content[i] @ content[j] / (content[i].norm() * content[j].norm()))
        for i in range(1, ITEMS) for j in range(1, ITEMS) if MISSING not in (i, j)
    }  # fmt: skip
    return similarity_to_history(history, recency, similar)


def assert_scores(scores: Tensor, expected: Sequence[Tensor]) -> None:
    assert scores.dtype == torch.float32
    assert scores.shape == (len(expected), ITEMS)
    torch.testing.assert_close(scores[:, 1:].double(), torch.stack(list(expected))[:, 1:], rtol=1e-5, atol=1e-6)


def test_popularity_is_the_count_of_training_interactions() -> None:
    expected = torch.tensor(popularity(), dtype=torch.float64)
    assert_scores(baseline("popularity").scores(make_batch(HISTORIES)), [expected] * len(HISTORIES))


@pytest.mark.parametrize(("window", "distance", "recency"), [(10, 0.5, 1.5), (1, 1.0, 0.0), (2, 0.0, 2.0)])
def test_transitions_against_loops(window: int, distance: float, recency: float) -> None:
    made = baseline("transition-knn", {"window": window, "distance": distance, "recency": recency})
    expected = [transition_scores(history, window, distance, recency) for history in HISTORIES]
    assert_scores(made.scores(make_batch(HISTORIES)), expected)
    matrix = torch.zeros(ITEMS, ITEMS, dtype=torch.float64)
    for (i, j), value in transition_counts(window, distance).items():
        matrix[i, j] = value
    counted = transitions(interactions(SEQUENCES), ITEMS, window, distance).to_dense()
    torch.testing.assert_close(counted, matrix, rtol=1e-12, atol=0)


def test_popularity_orders_only_what_followed_nothing() -> None:
    scores = baseline("transition-knn").scores(make_batch(HISTORIES))
    followed = torch.stack([transition_scores(history, 10, 0.5, 1.5) for history in HISTORIES]) > 0
    assert scores[followed].min() > 0 >= scores[:, 1:][~followed[:, 1:]].max()
    nobody = baseline("transition-knn").scores(make_batch([[10]]))  # item 10 occurs in no training sequence
    assert (
        nobody[0, 1:].argsort(descending=True, stable=True).tolist()
        == torch.tensor(popularity())[1:].argsort(descending=True, stable=True).tolist()
    )


def test_a_world_without_transitions_is_ranked_by_popularity() -> None:
    alone = replace(context(), interactions=interactions([[4], [4], [2]]))
    scores = baseline("transition-knn", data=alone).scores(make_batch([[4]]))
    assert scores[0, 4] > scores[0, 2] > scores[0, 1] == scores[0, 3]
    empty = replace(context(), interactions=interactions([[]]))
    assert torch.isfinite(baseline("transition-knn", data=empty).scores(make_batch([[4]]))[:, 1:]).all()


@pytest.mark.parametrize("recency", [0.0, 1.5])
def test_titles_against_loops(recency: float) -> None:
    histories = [*HISTORIES, [3], [1, 2, 5], [8, 10]]
    made = baseline("tfidf-knn", {"recency": recency})
    assert_scores(made.scores(make_batch(histories)), [title_scores(history, recency) for history in histories])


def test_words_are_lower_case_runs_of_word_characters() -> None:
    assert words_of("It's a_b 3D-Кино, ÉTÉ") == ["it", "s", "a_b", "3d", "кино", "été"]
    assert words_of("我爱cats和狗 カメ") == ["我", "爱", "cats", "和", "狗", "カ", "メ"]
    assert words_of(" ...!") == []


@pytest.mark.parametrize("field", ["text", "visual"])
@pytest.mark.parametrize("recency", [0.0, 1.5])
def test_content_against_loops(field: ContentField, recency: float) -> None:
    made = baseline("content-knn", {"field": field, "recency": recency})
    expected = [content_scores(history, recency, field) for history in HISTORIES]
    assert_scores(made.scores(make_batch(HISTORIES)), expected)


@pytest.mark.parametrize("name", BASELINES)
def test_padding_never_scores_above_an_item(name: str) -> None:
    scores = baseline(name).scores(make_batch(HISTORIES))
    assert (scores[:, :1] < scores[:, 1:]).all()
    assert torch.isfinite(scores[:, 1:]).all()


@pytest.mark.parametrize("name", BASELINES)
def test_scores_depend_on_the_history_alone(name: str) -> None:
    """Scores do not depend on the batch, padding, user, target or noise key, and a second call gives the same."""
    made, batch = baseline(name), make_batch(HISTORIES)
    together = made.scores(batch)
    assert torch.equal(together, made.scores(batch))
    assert torch.equal(together, baseline(name).scores(batch)), "fitting is deterministic"
    for row, history in enumerate(HISTORIES):
        alone = made.scores(stranger(make_batch([history], length=len(history))))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-6, atol=1e-7)
    if name == "transition-knn":  # it has many ties, which must stay exact ties
        assert torch.equal(made.scores(batch[2:4]), together[2:4])


def stranger(batch: Batch) -> Batch:
    return replace(batch, user=torch.full_like(batch.user, -1), target=0 * batch.target, key=batch.key + 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transition-knn", {"window": 0}, "window is 0: it must be at least 1"),
        ("transition-knn", {"distance": -1.0}, "distance is -1.0: it must be 0 or more"),
        ("transition-knn", {"recency": -1.0}, "recency is -1.0"),
        ("tfidf-knn", {"recency": -0.5}, "recency is -0.5: it must be 0 or more"),
        ("content-knn", {"field": "sequence"}, "model.field: it must be 'text' or 'visual' (given: 'sequence')"),
        ("content-knn", {"recency": -0.5}, "recency is -0.5"),
    ],
)
def test_options_out_of_bounds_are_refused(name: str, options: Mapping[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_system(name, options, context())


@pytest.mark.parametrize("field", ["text", "visual"])
def test_content_that_the_dataset_lacks_is_refused(field: ContentField) -> None:
    table = item_table(fields=["visual" if field == "text" else "text"])
    with pytest.raises(UserError, match=f"content-knn needs item content.*{field}: prepare it with"):
        make_system("content-knn", {"field": field}, model_context(table=table))
    assert options_of("content-knn", {"field": field}).needs == (field,)


@pytest.mark.parametrize("titles", [[None] * (ITEMS - 1), ["", "..."] + [None] * (ITEMS - 3), []])
def test_titles_that_the_dataset_lacks_are_refused(titles: list[str | None]) -> None:
    with pytest.raises(UserError, match=r"tfidf-knn needs titles.*mealrec prepare"):
        make_system("tfidf-knn", {}, replace(context(), titles=titles))


def test_what_an_export_must_carry() -> None:
    defaults = {name: options_of(name, {}) for name in BASELINES}
    assert {name: (options.needs_interactions, options.needs_titles) for name, options in defaults.items()} == {
        "popularity": (True, False), "transition-knn": (True, False),
        "tfidf-knn": (False, True), "content-knn": (False, False),
    }  # fmt: skip
