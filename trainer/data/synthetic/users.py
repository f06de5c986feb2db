"""Users of the synthetic world: what they click, and how well the next click could be predicted at best.

A user has a few favourite topics and an interest in one of them, which drifts. A step is either an accident (an item
drawn evenly from the catalogue) or a choice: interest drifts or stays; if it stays, the user often goes on along the
circle of the topic; otherwise the item is drawn by popularity within the topic. No user sees an item twice: a step is
redrawn, within its kind, until its item is new. So the distribution of the next item is known exactly, and with it the
best possible hit rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.errors import UserError
from trainer.data.synthetic.world import BEHAVIOURS, USERS, Array, Catalogue, SyntheticOptions, stream

#: users simulated together: fixed, so that the world does not depend on how it is written
USER_GRANULE = 4096
#: probability of going 1, 2 or 3 items on along the circle
REACH = np.array([0.5, 0.3, 0.2])
#: what users of a world with `behaviours` show, in bit order
BEHAVIOUR_NAMES = ("view", "like")
#: probability of a like after a chosen interaction, and after an accident
LIKES = (0.5, 0.02)
RELEASE_TIME = 1_700_000_000  # cold items appear here; the last two interactions of every user come after it
#: ranks of the ideal ranking for which the truth tells the share of targets, and its key there
TRUTH_DEPTH = 100
TARGET_SHARE = "target_share_at_rank"
_DAY = 86_400
_REDRAWS = 2000
_RANKED_TOGETHER = 512  # users: their candidates take some 20 MB


@dataclass(frozen=True)
class Mind:
    """Hidden state of users just before one interaction.

    interest: (n,) int32, current topic. favourites: (n, F) int32. last: (n,) int32, last chosen item, -1 for none.
    """

    interest: Array
    favourites: Array
    last: Array

    def __getitem__(self, rows: Array) -> Mind:
        return Mind(self.interest[rows], self.favourites[rows], self.last[rows])


@dataclass(frozen=True)
class SimulatedHistories:
    """Interactions of a run of users, and their state before the last one (the test target).

    length: (n,) int64. items (n, L) int32, accidental (n, L) bool, times (n, L) int64 seconds: padded on the right with
    -1, False, 0. mind: of every user, before the test target. behaviours: (n, L) uint8, bits of BEHAVIOUR_NAMES, 0
    at padding.
    """

    length: Array
    items: Array
    accidental: Array
    times: Array
    mind: Mind
    behaviours: Array


def histories(options: SyntheticOptions, places: Catalogue) -> Iterator[SimulatedHistories]:
    """All users, USER_GRANULE at a time; each part depends only on the options and its number."""
    for granule, start in enumerate(range(0, options.users, USER_GRANULE)):
        yield _simulate(options, places, granule, min(USER_GRANULE, options.users - start))


def longest(options: SyntheticOptions) -> int:
    """Most interactions that a user of this world can have."""
    return 3 + int(np.ceil(5 * (options.mean_length - 3)))


def _simulate(o: SyntheticOptions, places: Catalogue, granule: int, n: int) -> SimulatedHistories:
    rng = stream(o.seed, USERS, granule)
    length = np.minimum(2 + rng.geometric(1 / (o.mean_length - 2), n), longest(o))
    favourites = _distinct(rng, n, o.favourites, o.topics)
    interest, last = favourites[:, 0].copy(), np.full(n, -1, np.int32)
    before_test = interest.copy(), last.copy()
    items = np.full((n, int(length.max())), -1, np.int32)
    accidental = np.zeros(items.shape, bool)
    for step in range(items.shape[1]):
        rows = np.flatnonzero(length > step)
        ends = rows[length[rows] == step + 1]
        before_test[0][ends], before_test[1][ends] = interest[ends], last[ends]
        accidental[rows, step] = rng.random(len(rows)) < o.accident
        pending = rows
        for _ in range(_REDRAWS):
            mind = Mind(interest[pending], favourites[pending], last[pending])
            item, topic = _choose(rng, o, places, mind)
            wrong = accidental[pending, step]
            item = np.where(wrong, rng.integers(places.items, size=len(pending)), item)
            released = step >= length[pending] - 2
            ok = (released | ~places.cold[item]) & ~(items[pending, :step] == item[:, None]).any(axis=1)
            items[pending[ok], step] = item[ok]
            chosen = ok & ~wrong
            interest[pending[chosen]], last[pending[chosen]] = topic[chosen], item[chosen]
            pending = pending[~ok]
            if not len(pending):
                break
        else:
            raise UserError(
                f"synthetic world: a user found nothing new among {o.favourites} favourite topics of about "
                f"{o.items // o.topics} items: raise items, or lower topics, mean_length, follow or zipf"
            )
    steps = np.arange(items.shape[1])
    times = RELEASE_TIME + (steps - length[:, None] + 2) * _DAY + rng.integers(_DAY, size=items.shape)
    mind = Mind(before_test[0], favourites, before_test[1])
    behaviours = _behaviours(o, granule, items, accidental)
    return SimulatedHistories(length, items, accidental, np.where(items >= 0, times, 0), mind, behaviours)


def _behaviours(o: SyntheticOptions, granule: int, items: Array, accidental: Array) -> Array:
    """(n, L) uint8: a view everywhere; a like often where the item was chosen, and seldom where it was an accident."""
    drawn = stream(o.seed, BEHAVIOURS, granule).random(items.shape)
    liked = drawn < np.where(accidental, LIKES[1], LIKES[0])
    bits: Array = np.where(items >= 0, 1 + 2 * liked, 0).astype(np.uint8)
    return bits


def _distinct(rng: np.random.Generator, n: int, count: int, among: int) -> Array:
    """(n, count) int32, each row distinct numbers below `among` (redrawn, without an (n, among) array)."""
    rows = rng.integers(among, size=(n, count), dtype=np.int32)
    for column in range(1, count):
        while True:
            clash = np.flatnonzero((rows[:, :column] == rows[:, column : column + 1]).any(axis=1))
            if not len(clash):
                break
            rows[clash, column] = rng.integers(among, size=len(clash), dtype=np.int32)
    return rows


def _choose(rng: np.random.Generator, o: SyntheticOptions, places: Catalogue, mind: Mind) -> tuple[Array, Array]:
    """Proposed items and their topics, not yet checked for being new."""
    n = len(mind.interest)
    drift, slot, follow, reach, draw = rng.random((5, n))
    redrawn = mind.favourites[np.arange(n), (slot * o.favourites).astype(np.int64)]
    topic = np.where(drift < o.drift, redrawn, mind.interest)
    follows = (topic == mind.interest) & (mind.last >= 0) & (follow < o.follow)
    steps = 1 + np.searchsorted(np.cumsum(REACH)[:-1], reach, side="right")
    return np.where(follows, places.successor(mind.last, steps), places.pick(topic, draw)), topic


def choice_probability(o: SyntheticOptions, places: Catalogue, mind: Mind, items: Array) -> Array:
    """Probability that a choice (no accident) proposes each item, before items seen already are left out.

    items: (n, C) -> (n, C) float64; over the whole catalogue a row sums to 1.
    """
    topic = places.topic[items]
    current = topic == mind.interest[:, None]
    liked = (topic[:, :, None] == mind.favourites[:, None, :]).any(axis=2)
    of_topic = o.drift / o.favourites * liked + (1 - o.drift) * current
    goes_on = o.follow * current * (mind.last >= 0)[:, None]
    ahead = places.successor(mind.last[:, None], np.arange(1, len(REACH) + 1))
    along = ((items[:, :, None] == ahead[:, None, :]) * REACH).sum(axis=2)
    probability: Array = of_topic * ((1 - goes_on) * places.share_in_topic(items) + goes_on * along)
    return probability


def best_ranking(o: SyntheticOptions, places: Catalogue, part: SimulatedHistories, k: int) -> tuple[Array, Array]:
    """The k most probable test targets of each user and their probabilities, given all that the generator knows.

    Returns items (n, k) int64 (-1: any item that is possible by accident only) and probability (n, k) float64, falling.
    Exact without an (n, I) array: outside the candidates, items are no more probable than k candidates of their topic.
    """
    history = np.where(np.arange(part.items.shape[1]) < part.length[:, None] - 1, part.items, -1)
    popular = _most_popular(places, k + history.shape[1])
    blocks = np.array_split(np.arange(len(history)), -(-len(history) // _RANKED_TOGETHER))
    ranked = [
        _best_ranking(o, places, popular, part.mind[rows], history[rows], part.length[rows], k) for rows in blocks
    ]
    items, probability = (np.concatenate(column) for column in zip(*ranked, strict=True))
    return items, probability


def _best_ranking(
    o: SyntheticOptions, places: Catalogue, popular: Array, mind: Mind, history: Array, length: Array, k: int
) -> tuple[Array, Array]:
    """`best_ranking` of a few users. popular: (T, k + L) items of each topic; history: (n, L) without the target."""
    best = popular[mind.favourites].reshape(len(history), -1)
    ahead = places.successor(mind.last[:, None], np.arange(1, len(REACH) + 1))
    ahead = np.where(mind.last[:, None] >= 0, ahead, -1)
    candidates = np.sort(np.concatenate([best, ahead], axis=1), axis=1)
    usable = candidates >= 0
    usable[:, 1:] &= candidates[:, 1:] != candidates[:, :-1]
    for column in history.T:
        usable &= candidates != column[:, None]

    seen = (history >= 0) * choice_probability(o, places, mind, history)
    by_choice = choice_probability(o, places, mind, candidates) / (1 - seen.sum(axis=1, keepdims=True))
    by_accident = o.accident / (places.items - length + 1)[:, None]
    probability = np.where(usable, (1 - o.accident) * by_choice + by_accident, 0.0)
    # the rest of the catalogue: possible by accident, as far as there are that many items
    others = (places.items - length + 1 - usable.sum(axis=1))[:, None]
    rest = np.where(np.arange(k) < others, by_accident, 0.0)
    probability = np.concatenate([probability, rest], axis=1)
    items = np.concatenate([np.where(usable, candidates, -1), np.full((len(history), k), -1)], axis=1)
    top = np.argsort(-probability, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(items, top, axis=1), np.take_along_axis(probability, top, axis=1)


def _most_popular(places: Catalogue, count: int) -> Array:
    """(T, count) int64: the most popular items of every topic, padded with -1."""
    best = np.full((len(places.bounds) - 1, count), -1, np.int64)
    for topic, (low, high) in enumerate(zip(places.bounds[:-1], places.bounds[1:], strict=True)):
        items = places.order[low:high]
        if len(items) > count:
            items = items[np.argpartition(-places.weight[items], count)[:count]]
        best[topic, : len(items)] = items
    return best


def expected_metrics(probability: Array) -> dict[str, float]:
    """Best possible HR and NDCG at 10 and 20, from the (n, >= 20) falling probabilities of `best_ranking`."""
    discount = 1 / np.log2(np.arange(2, 22))
    return {
        name: float(value.mean())
        for k in (10, 20)
        for name, value in {
            f"HR@{k}": probability[:, :k].sum(axis=1),
            f"NDCG@{k}": (probability[:, :k] * discount[:k]).sum(axis=1),
        }.items()
    }
