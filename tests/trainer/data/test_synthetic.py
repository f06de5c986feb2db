"""The synthetic world: its planted effects can be measured, and its best possible metrics are true."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from retrieval.metrics.summary import best_possible
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import load_manifest
from trainer.data.synthetic.generate import generate
from trainer.data.synthetic.users import (
    LIKES,
    REACH,
    TARGET_SHARE,
    SimulatedHistories,
    best_ranking,
    expected_metrics,
    histories,
)
from trainer.data.synthetic.world import Array, Catalogue, ItemContent, SyntheticOptions, catalogue, vocabulary

TINY = SyntheticOptions(users=60, items=60, topics=3, favourites=2, mean_length=6, width=8, text_width=4, frames=3)


def everyone(o: SyntheticOptions) -> tuple[Catalogue, list[SimulatedHistories]]:
    places = catalogue(o)
    return places, list(histories(o, places))


def true_distribution(o: SyntheticOptions, places: Catalogue, part: SimulatedHistories, user: int) -> Array:
    """(I,) distribution of a user's test target, by plain loops over the rules of the world."""
    seen = set(part.items[user, : part.length[user] - 1].tolist())
    likes, now, last = part.mind.favourites[user], part.mind.interest[user], part.mind.last[user]
    choice = np.zeros(o.items)
    for topic in set(likes.tolist()):
        members = sorted((i for i in range(o.items) if places.topic[i] == topic), key=lambda i: places.phase[i])
        of_topic = o.drift / o.favourites + (1 - o.drift if topic == now else 0)
        goes_on = o.follow if topic == now and last >= 0 else 0.0
        total = sum(places.weight[i] for i in members)
        for i in members:
            choice[i] += of_topic * (1 - goes_on) * places.weight[i] / total
        for steps, share in enumerate(REACH, start=1):
            if goes_on:
                choice[members[(members.index(last) + steps) % len(members)]] += of_topic * goes_on * share
    assert choice.sum() == pytest.approx(1)
    new = np.array([i not in seen for i in range(o.items)])
    both: Array = (1 - o.accident) * choice * new / (choice * new).sum() + o.accident * new / new.sum()
    return both


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    accident=st.sampled_from([0.0, 0.3, 1.0]),
    follow=st.sampled_from([0.0, 0.5, 0.9]),
    drift=st.sampled_from([0.1, 1.0]),
    items=st.integers(20, 70),
    zipf=st.sampled_from([0.0, 1.0]),
)
def test_best_possible_equals_brute_force(
    seed: int, accident: float, follow: float, drift: float, items: int, zipf: float
) -> None:
    topics = items // 20
    o = SyntheticOptions(
        users=12, items=items, seed=seed, topics=topics, favourites=min(2, topics), mean_length=4,
        accident=accident, follow=follow, drift=drift, zipf=zipf, cold=0.2,
    )  # fmt: skip
    places, (part,) = everyone(o)
    ranked, probability = best_ranking(o, places, part, 20)
    for user in range(o.users):
        truth = true_distribution(o, places, part, user)
        assert truth.sum() == pytest.approx(1)
        assert probability[user] == pytest.approx(np.sort(truth)[::-1][:20], abs=1e-12)
        named = ranked[user] >= 0
        assert probability[user][named] == pytest.approx(truth[ranked[user][named]], abs=1e-12)
    brute = [np.sort(true_distribution(o, places, part, u))[::-1][:10].sum() for u in range(o.users)]
    assert expected_metrics(probability)["HR@10"] == pytest.approx(np.mean(brute), abs=1e-12)


def test_targets_follow_the_true_distribution() -> None:
    o = replace(TINY, users=4000, cold=0.1)
    places, (part,) = everyone(o)
    truth = np.stack([true_distribution(o, places, part, u) for u in range(o.users)])
    target = part.items[np.arange(o.users), part.length - 1]
    drawn = np.bincount(target, minlength=o.items)
    z = (drawn - truth.sum(axis=0)) / np.sqrt((truth * (1 - truth)).sum(axis=0))
    assert np.abs(z).max() < 4.5  # 60 items: a false alarm at 4.5 is about 4e-4, and the seed is fixed
    # per user, not only in sum over users: the mean probability of what happened is the mean sum of squares
    happened = truth[np.arange(o.users), target]
    assert happened.mean() == pytest.approx((truth**2).sum(axis=1).mean(), abs=5 * happened.std() / np.sqrt(o.users))


def test_no_simple_ranker_beats_the_best_possible_and_ids_beat_popularity() -> None:
    o = SyntheticOptions(items=1000)
    places, (part,) = everyone(o)
    ranked, probability = best_ranking(o, places, part, 20)
    best = expected_metrics(probability)["HR@10"]
    sequences = [row[:n].tolist() for row, n in zip(part.items, part.length, strict=True)]
    count, follows = np.zeros(o.items), np.zeros((o.items, o.items))
    for items in sequences:
        np.add.at(count, items[:-2], 1)
        np.add.at(follows, (items[:-3], items[1:-2]), 1)

    def hit_rate(score: Array, items: list[int]) -> bool:
        score[items[:-1]] = -1
        return bool((score >= score[items[-1]]).sum() <= 10)

    popularity = np.mean([hit_rate(count.copy(), s) for s in sequences])
    rate = follows / (count[:, None] + 1)
    ids = np.mean(
        [hit_rate(sum(0.7**j * rate[i] for j, i in enumerate(s[-2::-1][:10])) + 1e-6 * count, s) for s in sequences]
    )
    oracle = np.mean((ranked[:, :10] == part.items[np.arange(o.users), part.length - 1][:, None]).any(axis=1))
    assert popularity < 0.1
    assert 3 * popularity < ids < best
    assert oracle == pytest.approx(best, abs=4 * np.sqrt(best * (1 - best) / o.users))


def test_users_click_as_the_options_say() -> None:
    o = SyntheticOptions(users=6000, items=1000, accident=0.25, cold=0.15)
    places, parts = everyone(o)
    accidental = np.concatenate([p.accidental[p.items >= 0] for p in parts])
    assert accidental.mean() == pytest.approx(0.25, abs=0.01)
    assert np.mean(np.concatenate([p.length for p in parts])) == pytest.approx(o.mean_length, rel=0.05)
    assert places.cold.sum() == 150
    for part in parts:
        late = np.arange(part.items.shape[1]) >= part.length[:, None] - 2
        assert not places.cold[part.items[(part.items >= 0) & ~late]].any()
        assert places.cold[part.items[(part.items >= 0) & late]].mean() == pytest.approx(0.15, abs=0.03)
        assert part.length.min() >= 3
        for items, times, n in zip(part.items, part.times, part.length, strict=True):
            assert len(set(items[:n].tolist())) == n
            assert (items[n:] == -1).all()
            assert (np.diff(times[:n]) > 0).all()


def test_popularity_follows_zipf() -> None:
    # one topic and no circle: the first click of a user is drawn by popularity alone
    o = SyntheticOptions(users=20_000, items=1000, topics=1, favourites=1, mean_length=3, accident=0, cold=0, zipf=1.0)
    _, parts = everyone(o)
    count = np.sort(np.bincount(np.concatenate([p.items[:, 0] for p in parts]), minlength=o.items))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 51)), np.log(count[:50]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.08)


def test_interest_drifts_among_favourites() -> None:
    o = SyntheticOptions(users=2000, items=1000, accident=0, drift=0.3, favourites=3, mean_length=12)
    places, (part,) = everyone(o)
    topic = np.where(part.items >= 0, places.topic[part.items], -1)
    assert all(set(row[:n]) <= set(f) for row, n, f in zip(topic, part.length, part.mind.favourites, strict=True))
    moved = (topic[:, 1:] != topic[:, :-1])[topic[:, 1:] >= 0].mean()
    # redrawn among 3 favourites, so 2/3 of drifts move; items seen already make moves somewhat more likely
    assert 0.2 < moved < 0.27


def test_content_shows_the_topic_where_the_truth_says() -> None:
    o = SyntheticOptions(items=2000)
    places = catalogue(o)
    content = ItemContent(o, places)
    frames, mask = content.frames(0, o.items), content.on_topic(0, o.items)
    assert (mask.sum(axis=1) == o.on_topic).all()
    assert mask.mean(axis=0) == pytest.approx(np.full(o.frames, o.on_topic / o.frames), abs=0.05)
    centroid = np.stack([frames[places.topic == t][mask[places.topic == t]].mean(axis=0) for t in range(o.topics)])
    nearest = ((frames[:, :, None] - centroid) ** 2).sum(axis=3).argmin(axis=2)
    right = nearest == places.topic[:, None]
    assert right[mask].mean() > 0.95
    assert right[~mask].mean() < 2 / o.topics
    words = vocabulary(o.topics)
    assert len(set(words)) == len(words)
    own = [{words[12 * t + i] for i in range(12)} for t in range(o.topics)]
    titles = [title.split() for title in content.titles(0, o.items)]
    told = np.mean([word in own[t] for title, t in zip(titles, places.topic, strict=True) for word in title])
    assert told == pytest.approx(o.title_signal, abs=0.05)
    text = content.text(0, o.items)
    assert text.shape == (o.items, o.text_width)
    middle = np.stack([text[places.topic == t].mean(axis=0) for t in range(o.topics)])
    by_text = ((text[:, None] - middle) ** 2).sum(axis=2).argmin(axis=1) == places.topic
    assert 0.4 < by_text.mean() < 0.95  # with noise: neither never nor always


def test_neighbours_on_the_circle_look_alike() -> None:
    o = SyntheticOptions(items=1000, noise=0.0)
    places = catalogue(o)
    content = ItemContent(o, places)
    shown = np.where(content.on_topic(0, o.items)[:, :, None], content.frames(0, o.items), 0).sum(axis=1)
    item = np.arange(o.items)
    near = np.linalg.norm(shown[places.successor(item, np.array(1))] - shown, axis=1)
    far = np.linalg.norm(shown[places.successor(item, np.array(25))] - shown, axis=1)
    assert near.mean() < far.mean() / 4


def test_misleading_filler_shows_other_topics_and_shifts_no_other_draw() -> None:
    o = SyntheticOptions(items=2000, misleading=0.5, noise=0.2)
    places = catalogue(o)
    content, plain = ItemContent(o, places), ItemContent(replace(o, misleading=0.0), places)
    frames, mask = content.frames(0, o.items), content.on_topic(0, o.items)
    before = plain.frames(0, o.items)
    assert np.array_equal(mask, plain.on_topic(0, o.items))
    assert np.array_equal(frames[mask], before[mask])
    centroid = np.stack([frames[places.topic == t][mask[places.topic == t]].mean(axis=0) for t in range(o.topics)])
    distance = ((frames[:, :, None] - centroid) ** 2).mean(axis=3)
    filler = np.flatnonzero(~mask.ravel())
    changed = (frames != before).any(axis=2).ravel()[filler]
    assert changed.mean() == pytest.approx(0.5, abs=0.03)
    # what changed lies at the circle of a topic (a deviation of 1 and the noise), and never at the item's own
    nearest = distance.argmin(axis=2).ravel()[filler]
    own = np.repeat(places.topic, o.frames)[filler]
    assert (nearest[changed] != own[changed]).mean() > 0.99
    at_a_topic = distance.min(axis=2).ravel()[filler]
    assert np.median(at_a_topic[changed]) == pytest.approx(1 + o.noise**2, abs=0.2)
    assert np.median(at_a_topic[~changed]) > 1.3


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 2499), max_size=4), seed=st.integers(0, 3))
def test_content_is_the_same_in_any_blocks(cuts: list[int], seed: int) -> None:
    o = replace(TINY, items=2500, seed=seed, misleading=0.5)
    places = catalogue(o)
    whole, again = ItemContent(o, places), ItemContent(o, catalogue(o))
    edges = [0, *sorted(set(cuts)), o.items]
    for make in ("frames", "visual", "text", "on_topic"):
        blocks = [getattr(again, make)(a, b) for a, b in pairwise(edges)]
        assert np.array_equal(np.concatenate(blocks), getattr(whole, make)(0, o.items))
    titles = [t for a, b in pairwise(edges) for t in again.titles(a, b)]
    assert titles == whole.titles(0, o.items)


def test_the_seed_decides() -> None:
    _, (one,) = everyone(TINY)
    _, (same,) = everyone(replace(TINY))
    _, (other,) = everyone(replace(TINY, seed=1))
    assert one.items.tobytes() == same.items.tobytes()
    assert one.times.tobytes() == same.times.tobytes()
    assert one.items.tobytes() != other.items.tobytes()


def test_ten_thousand_users_take_seconds() -> None:
    o = SyntheticOptions(users=10_000, items=5_000)
    start = time.process_time()
    places, parts = everyone(o)
    for part in parts:
        best_ranking(o, places, part, 20)
    assert time.process_time() - start < 15  # about 1 s on a 2-core machine
    assert sum(len(part.length) for part in parts) == 10_000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accident": 1.5}, "accident is 1.5, must be between 0 and 1"),
        ({"accident": float("nan")}, "accident is nan"),
        ({"users": 0}, "users is 0"),
        ({"follow": 1.0}, "follow is 1.0, must be between 0 and 0.95"),
        ({"items": 1000, "topics": 51}, "topics is 51, must be between 1 and 50 .a topic needs at least 20 items"),
        ({"favourites": 21}, "favourites is 21, must be between 1 and 20"),
        ({"on_topic": 6}, "on_topic is 6, must be between 0 and 5"),
        ({"mean_length": 2.0}, "mean_length is 2.0"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SyntheticOptions(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("items", [20, 39, 40, 79, 300, 399])
def test_a_small_catalogue_has_fewer_topics_and_what_fits_is_not_changed(items: int) -> None:
    o = SyntheticOptions.fitting({"items": items, "users": 60})
    assert (o.topics, o.favourites) == (items // 20, min(3, items // 20))
    everyone(o)
    assert SyntheticOptions.fitting({"items": 60, "topics": 3}) == SyntheticOptions(items=60, topics=3)
    assert SyntheticOptions.fitting({}) == SyntheticOptions()
    with pytest.raises(UserError, match=r"topics is 20, must be between 1 and 15"):
        SyntheticOptions.fitting({"items": 300, "topics": 20})


def test_a_world_without_new_items_is_refused_and_does_not_hang() -> None:
    o = SyntheticOptions(users=50, items=24, topics=1, favourites=1, mean_length=6, zipf=5, follow=0, accident=0)
    with pytest.raises(UserError, match="found nothing new"):
        everyone(o)


def test_memory_does_not_grow_with_content() -> None:
    o = SyntheticOptions(users=100, items=300_000, topics=200, width=16, text_width=8)
    tracemalloc.start()
    try:
        places = catalogue(o)
        for part in histories(o, places):
            best_ranking(o, places, part, 20)
        content = ItemContent(o, places)
        for start in range(0, o.items, 30_000):
            assert len(content.frames(start, start + 2048)) == 2048
            assert len(content.titles(start, start + 2048)) == 2048
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # the frames alone are 96 MB


def test_prepared_world_holds_data_and_truth(tmp_path: Path) -> None:
    o = replace(TINY, users=300, items=9000, accident=0.3)  # more than one block of items
    generate(tmp_path / "one", o)
    generate(tmp_path / "two", o)
    generate(tmp_path / "other", replace(o, seed=1))
    dataset = Dataset.open(tmp_path / "one")
    dataset.verify()
    manifest = dataset.manifest
    assert manifest.truth is not None
    assert manifest.fingerprint == load_manifest(tmp_path / "two").fingerprint
    assert manifest.fingerprint != load_manifest(tmp_path / "other").fingerprint

    places, (part,) = everyone(o)
    assert SyntheticOptions(**manifest.truth["options"]) == o
    assert manifest.truth["HR@10"] == expected_metrics(best_ranking(o, places, part, 20)[1])["HR@10"]
    shares = manifest.truth[TARGET_SHARE]
    assert len(shares) == 100
    assert shares == pytest.approx(best_ranking(o, places, part, 100)[1].mean(axis=0))
    for key in ("HR@10", "NDCG@10", "HR@20", "NDCG@20"):
        assert best_possible(key, shares) == pytest.approx(manifest.truth[key])
    assert np.array_equal(dataset.items, part.items[part.items >= 0] + 1)
    truth = {path.stem: np.load(path) for path in (tmp_path / "one/truth").iterdir()}
    assert truth["accidental"].mean() == manifest.truth["accidental_share"]
    last = dataset.offsets[1:] - 1
    assert truth["item_cold"][dataset.items[last]].mean() == manifest.truth["cold_target_share"]
    assert np.array_equal(truth["item_topic"][1:], places.topic)

    # rows of the table, of the truth and of the world are the same items
    content = ItemContent(o, places)
    assert np.array_equal(truth["frame_on_topic"][1:], content.on_topic(0, o.items))
    for field, raw in {"sequence": content.frames, "visual": content.visual, "text": content.text}.items():
        assert np.array_equal(np.load(tmp_path / f"one/table/{field}.npy")[1:], raw(0, o.items).astype(np.float16))
    assert dataset.item_titles() == content.titles(0, o.items)
    assert (len(dataset.item_ids()), dataset.user_ids()[:2]) == (o.items, ["u0", "u1"])


def test_likes_tell_choices_from_accidents_and_shift_no_other_draw(tmp_path: Path) -> None:
    o = SyntheticOptions(users=3000, accident=0.4, behaviours=True)
    _, (part,) = everyone(o)
    real, liked = part.items >= 0, part.behaviours >> 1 == 1
    assert (part.behaviours & 1 == real).all()
    assert not part.behaviours[~real].any()
    for accidental, share in ((False, LIKES[0]), (True, LIKES[1])):
        of_kind = liked[real & (part.accidental == accidental)]
        assert of_kind.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(of_kind)))

    generate(tmp_path / "with", replace(TINY, behaviours=True))
    generate(tmp_path / "without", TINY)
    dataset, plain = Dataset.open(tmp_path / "with"), Dataset.open(tmp_path / "without")
    assert (dataset.manifest.behaviours, plain.manifest.behaviours) == (("view", "like"), ())
    assert plain.behaviours is None
    (tiny,) = everyone(TINY)[1]
    assert np.array_equal(dataset.behaviours, tiny.behaviours[tiny.items >= 0])  # type: ignore[arg-type]
    assert not (tmp_path / "without/sequences/behaviours.npy").exists()
    paths = [p.relative_to(tmp_path / "without") for p in (tmp_path / "without").rglob("*") if p.is_file()]
    same = [p for p in paths if p.name != "manifest.json" and not p.name.startswith("rows")]
    assert len(same) > 8
    for path in same:
        assert (tmp_path / "without" / path).read_bytes() == (tmp_path / "with" / path).read_bytes(), path


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an empty folder"):
        generate(tmp_path / "mine", TINY)
    hopeless = SyntheticOptions(users=50, items=24, topics=1, favourites=1, mean_length=6, zipf=5, follow=0, accident=0)
    with pytest.raises(UserError, match="found nothing new"):
        generate(tmp_path / "world", hopeless)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
