"""The synthetic world: its options, its catalogue (a few numbers per item) and the content of its items.

Items belong to topics; the items of a topic stand on a circle (`phase`), and users who like the topic tend to go round
it. Everything is drawn from counter-based streams keyed by (seed, purpose, granule), so the content of items
[start, stop) is the same whatever blocks it is asked for in. Items count from 0 here; a prepared dataset adds the
padding row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from models.errors import UserError

Array: TypeAlias = npt.NDArray[Any]

#: items generated together: fixed, so that content does not depend on the block size of a writer
ITEM_GRANULE = 1024
#: streams of random numbers, one per purpose, so that one option does not shift the draws of another
CODEBOOK, PLACE, RANK, FRAMES, TITLES, USERS, LAYERS, BEHAVIOURS, FILLER = range(9)

SCENES = 16
TITLE_WORDS = 6
WORDS_PER_TOPIC = 12
COMMON_WORDS = 240
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


@dataclass(frozen=True)
class SyntheticOptions:
    """A synthetic world; refuses impossible values with a UserError that names the option.

    Probabilities: `accident`, that an interaction is a click on any item; `drift`, per step, that interest is redrawn
    among the user's `favourites` (topics); `follow`, within a topic, that the next item is one of the next three on its
    circle; `title_signal`, that a word of a title is of the item's topic. `zipf`: the r-th most popular item has weight
    r ** -zipf. `cold`: share of items released only for the last two interactions of users (validation and test).
    `on_topic`: how many of the `frames` steps of an item show its topic, the others are filler. `misleading`: share of
    the filler that shows a place of another topic; the rest shows one of a few scenes, which mean nothing. So a
    misleading frame alone cannot be told from one on topic, only beside the other frames, or beside what the user
    watched. `noise`: standard deviation of the noise per dimension of a frame, where the signal has about 1.
    `max_length`: of a history, in rows.
    `layers`: states of the encoders of video and title that are kept (0: none): the last is the encoder's result, the
    earlier ones tell the topic alone, the more clearly the later they are. `behaviours`: every interaction is a view,
    and some are likes: most likes are of chosen items, few of accidents (`world_users.LIKES`).
    """

    users: int = 2500
    items: int = 4000
    seed: int = 0
    topics: int = 20
    favourites: int = 3
    mean_length: float = 10.0
    frames: int = 5
    width: int = 64
    text_width: int = 32
    layers: int = 0
    on_topic: int = 2
    misleading: float = 0.0
    noise: float = 0.5
    title_signal: float = 0.4
    accident: float = 0.2
    drift: float = 0.2
    follow: float = 0.5
    zipf: float = 0.8
    cold: float = 0.1
    max_length: int = 10
    behaviours: bool = False

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "users": (1, 2**31 - 1),
            "items": (20, 2**31 - 1),
            "seed": (0, 2**63 - 1),
            "topics": (1, self.items // 20),
            "favourites": (1, self.topics),
            "mean_length": (3, self.items / 4),
            "frames": (1, 10_000),
            "width": (1, 100_000),
            "text_width": (1, 100_000),
            "layers": (0, 1000),
            "on_topic": (0, self.frames),
            "noise": (0, 100),
            # a user whose next three on the circle are all seen needs another way on
            "follow": (0, 0.95),
            "zipf": (0, 5),
            "cold": (0, 0.5),
            "max_length": (1, 100_000),
        }
        for field in fields(self):
            low, high = bounds.get(field.name, (0, 1))
            value = getattr(self, field.name)
            if not low <= value <= high:
                reach = " (a topic needs at least 20 items)" if field.name == "topics" else ""
                raise UserError(f"synthetic world: {field.name} is {value}, must be between {low} and {high}{reach}")

    @classmethod
    def fitting(cls, given: Mapping[str, Any]) -> SyntheticOptions:
        """A world with the given options. Of the others, those that its catalogue is too small for are lowered: topics
        below 400 items, favourites below 3 topics, mean_length below 40 items."""
        items = given.get("items", cls.items)
        topics = given.get("topics", max(1, min(cls.topics, items // 20)))
        small = {
            "topics": topics,
            "favourites": max(1, min(cls.favourites, topics)),
            "mean_length": cls.mean_length if cls.mean_length <= items / 4 else max(3.0, items / 8),
        }
        return cls(**{**small, **given})


def stream(seed: int, purpose: int, granule: int = 0) -> np.random.Generator:
    """The random numbers of one granule of one purpose; independent between all (seed, purpose, granule)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, granule])))


@dataclass(frozen=True)
class Catalogue:
    """What the generator knows of every item: scalars only, so that 10 million items fit in memory.

    topic: (I,) int32. phase: (I,) float32 in [0, 1), place on the circle of its topic. weight: (I,) float64,
    popularity. cold: (I,) bool. order: (I,) int32, items by topic, then phase; position: (I,) int32, its inverse.
    bounds: (T + 1,) int64, topic t is order[bounds[t]:bounds[t + 1]]. cumulative: (I + 1,) float64, of weight[order].
    """

    topic: Array
    phase: Array
    weight: Array
    cold: Array
    order: Array
    position: Array
    bounds: Array
    cumulative: Array

    @property
    def items(self) -> int:
        """Number of items (I)."""
        return len(self.topic)

    def pick(self, topic: Array, uniform: Array) -> Array:
        """(n,) items of the given topics, drawn by popularity; topic (n,) int, uniform (n,) in [0, 1)."""
        low, high = self.bounds[topic], self.bounds[topic + 1]
        mass = self.cumulative[low] + uniform * (self.cumulative[high] - self.cumulative[low])
        place = np.searchsorted(self.cumulative, mass, side="right") - 1
        item: Array = self.order[np.clip(place, low, high - 1)]
        return item

    def successor(self, item: Array, steps: Array) -> Array:
        """The item that comes `steps` later on the circle of its topic; shapes broadcast."""
        topic = self.topic[item]
        low = self.bounds[topic]
        size = self.bounds[topic + 1] - low
        later: Array = self.order[low + (self.position[item] - low + steps) % size]
        return later

    def share_in_topic(self, item: Array) -> Array:
        """Probability that `pick` gives this item, given its topic."""
        topic = self.topic[item]
        share: Array = self.weight[item] / (
            self.cumulative[self.bounds[topic + 1]] - self.cumulative[self.bounds[topic]]
        )
        return share


def catalogue(options: SyntheticOptions) -> Catalogue:
    """Topics, places, popularity and coldness of all items: a pure function of the options."""
    n = options.items
    topic, phase = np.empty(n, np.int32), np.empty(n, np.float32)
    for granule, start in enumerate(range(0, n, ITEM_GRANULE)):
        rng = stream(options.seed, PLACE, granule)
        stop = min(start + ITEM_GRANULE, n)
        # topics are dealt evenly, so that none is empty in a small world
        topic[start:stop] = rng.permutation(np.arange(start, stop) % options.topics)
        phase[start:stop] = rng.random(stop - start, dtype=np.float32)
    rank = stream(options.seed, RANK).permutation(np.arange(n, dtype=np.int32))
    # cold items are spread evenly over popularity ranks: their share is exact and they are as popular as others
    cold = np.floor((rank + 1) * options.cold + 1e-9) > np.floor(rank * options.cold + 1e-9)
    weight = (rank + 1.0) ** -options.zipf
    order = np.argsort(topic + phase.astype(np.float64), kind="stable").astype(np.int32)
    position = np.empty(n, np.int32)
    position[order] = np.arange(n, dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(topic, minlength=options.topics))])
    cumulative = np.concatenate([[0.0], np.cumsum(weight[order])])
    return Catalogue(topic, phase, weight, cold, order, position, bounds, cumulative)


class ItemContent:
    """Makes the content of any run of items; holds only the vectors of topics, filler scenes and words.

    Every method gives items [start, stop) and gives the same for every way of cutting the catalogue into blocks.
    """

    def __init__(self, options: SyntheticOptions, places: Catalogue) -> None:
        rng = stream(options.seed, CODEBOOK)
        t, v, h = options.topics, options.width, options.text_width
        self._options = options
        self._places = places
        self._topics = rng.standard_normal((t, v), dtype=np.float32)
        self._circles = rng.standard_normal((t, 2, v), dtype=np.float32)
        self._scenes = rng.standard_normal((SCENES, v), dtype=np.float32)
        # words of a topic lie around its vector; common words anywhere
        vectors = rng.standard_normal((t * WORDS_PER_TOPIC + COMMON_WORDS, h), dtype=np.float32)
        around = 2 * rng.standard_normal((t, h), dtype=np.float32)
        vectors[: t * WORDS_PER_TOPIC] += np.repeat(around, WORDS_PER_TOPIC, axis=0)
        self._word_vectors = vectors
        self._around = around
        self._words = vocabulary(t)

    def frames(self, start: int, stop: int) -> Array:
        """(n, K, V) float32: steps on topic show the topic and the item's place on its circle, the others a scene."""
        return self._cut(self._frames, start, stop)

    def visual(self, start: int, stop: int) -> Array:
        """(n, V) float32: the mean of the frames, as of an encoder of whole videos, which filler dilutes."""
        return self._cut(lambda granule: self._frames(granule).mean(axis=1), start, stop)

    def on_topic(self, start: int, stop: int) -> Array:
        """(n, K) bool: which steps of `frames` show the topic; planted truth, no model may see it."""
        return self._cut(lambda granule: self._mask(stream(self._options.seed, FRAMES, granule), granule), start, stop)

    def text(self, start: int, stop: int) -> Array:
        """(n, H) float32: the mean of the vectors of the title's words."""
        vectors: Array = self._word_vectors[self._cut(self._title_words, start, stop)].mean(axis=1)
        return vectors

    def visual_layers(self, start: int, stop: int) -> Array:
        """(n, S, V) float32: states of the video's encoder; the last is `visual`, free of filler are those before."""
        return self._cut(lambda granule: self._states(granule, self._shown(granule), 0), start, stop)

    def text_layers(self, start: int, stop: int) -> Array:
        """(n, S, H) float32: states of the title's encoder; the last is `text`."""
        return self._cut(lambda granule: self._states(granule, self._around[self._topic(granule)], 1), start, stop)

    def titles(self, start: int, stop: int) -> list[str]:
        """n titles of TITLE_WORDS words."""
        return [" ".join([self._words[w] for w in row]) for row in self._cut(self._title_words, start, stop).tolist()]

    def _rows(self, granule: int) -> slice:
        return slice(granule * ITEM_GRANULE, min((granule + 1) * ITEM_GRANULE, self._options.items))

    def _cut(self, make: Callable[[int], Array], start: int, stop: int) -> Array:
        granules = range(start // ITEM_GRANULE, max(start, stop - 1) // ITEM_GRANULE + 1)
        # cut each granule before joining them, so that what is held is what was asked for
        return np.concatenate([make(g)[max(start - g * ITEM_GRANULE, 0) : stop - g * ITEM_GRANULE] for g in granules])

    def _mask(self, rng: np.random.Generator, granule: int) -> Array:
        o, rows = self._options, self._rows(granule)
        return rng.permuted(np.tile(np.arange(o.frames) < o.on_topic, (rows.stop - rows.start, 1)), axis=1)

    def _frames(self, granule: int) -> Array:
        o = self._options
        rng = stream(o.seed, FRAMES, granule)
        on_topic = self._mask(rng, granule)
        frames: Array = self._scenes[rng.integers(SCENES, size=on_topic.shape)]
        if o.misleading:
            self._mislead(frames, granule)
        np.copyto(frames, self._shown(granule)[:, None], where=on_topic[:, :, None])
        frames += np.float32(o.noise) * rng.standard_normal(frames.shape, dtype=np.float32)
        return frames

    def _mislead(self, frames_IKV: Array, granule: int) -> None:
        """Put places of other topics in the stead of a share of the frames (all on topic are overwritten later)."""
        o = self._options
        rng = stream(o.seed, FILLER, granule)
        drawn, place = rng.random((2, *frames_IKV.shape[:2]))
        # any topic but the item's own, evenly; in a world of one topic there is no other
        ahead = rng.integers(1, max(o.topics, 2), size=frames_IKV.shape[:2])
        topic = (self._topic(granule)[:, None] + ahead) % o.topics
        shown = self._at(topic, place)
        np.copyto(frames_IKV, shown, where=(drawn < o.misleading)[:, :, None])

    def _at(self, topic: Array, phase: Array) -> Array:
        """(..., V) float32: what a frame shows, without noise, of a topic (...,) at a place on its circle (...,)."""
        angle = 2 * np.pi * phase[..., None]
        circle = self._circles[topic]
        shown: Array = self._topics[topic] + np.cos(angle) * circle[..., 0, :] + np.sin(angle) * circle[..., 1, :]
        return shown

    def _topic(self, granule: int) -> Array:
        topic: Array = self._places.topic[self._rows(granule)]
        return topic

    def _shown(self, granule: int) -> Array:
        """(n, V) what a frame on topic shows, without noise."""
        return self._at(self._topic(granule), self._places.phase[self._rows(granule)])

    def _states(self, granule: int, signal: Array, encoder: int) -> Array:
        """(n, S, width) states of `encoder`: a rotation of `signal` of its own per state, and noise that shrinks."""
        o, width = self._options, signal.shape[1]
        rng = stream(o.seed, LAYERS, 2 * granule + encoder)
        states = rng.standard_normal((len(signal), o.layers, width), dtype=np.float32)
        states *= np.arange(o.layers - 1, -1, -1, dtype=np.float32)[:, None] * np.float32(o.noise)
        for layer in range(o.layers - 1):
            states[:, layer] += signal @ self._rotation(width, encoder, layer)
        rows = self._rows(granule)
        states[:, -1] = (self.text if encoder else self.visual)(rows.start, rows.stop)
        return states

    def _rotation(self, width: int, encoder: int, layer: int) -> Array:
        rng = stream(self._options.seed, CODEBOOK, 1 + encoder + 2 * layer)
        rotation: Array = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
        return rotation

    def _title_words(self, granule: int) -> Array:
        rng = stream(self._options.seed, TITLES, granule)
        topic = self._topic(granule)
        shape = (len(topic), TITLE_WORDS)
        own = topic[:, None] * WORDS_PER_TOPIC + rng.integers(WORDS_PER_TOPIC, size=shape)
        # the other words come from the whole vocabulary, so that some of them tell a wrong topic
        other = rng.integers(len(self._words), size=shape)
        return np.where(rng.random(shape) < self._options.title_signal, own, other)


def vocabulary(topics: int) -> list[str]:
    """Pronounceable words: WORDS_PER_TOPIC per topic, which share its stem, then COMMON_WORDS of two syllables."""
    stems = [_syllables(t + 1, 2) for t in range(topics)]
    own = [stem + _syllables(7 * i + 3, 1) for stem in stems for i in range(WORDS_PER_TOPIC)]
    return own + [_syllables(11 * i + 5, 2) for i in range(COMMON_WORDS)]


def _syllables(number: int, least: int) -> str:
    parts: list[str] = []
    while number or len(parts) < least:
        number, digit = divmod(number, len(_SYLLABLES))
        parts.append(_SYLLABLES[digit])
    return "".join(parts)
