"""Trials on a real Ray: few processes serve many, a death ends no other trial, bad ones are stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.failures import PreflightError
from cluster.ray_tune import Halving, Slots, _Reporter, one_after_the_other, run_trials, slots
from cluster.session import connected
from tests.helpers.tune_work import work


class _Watcher:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.epochs: dict[str, int] = {}
        self.ends: dict[str, str | None] = {}

    def started(self, name: str) -> None:
        self.begun.append(name)

    def reported(self, name: str, epoch: int, value: float) -> None:
        del value
        self.epochs[name] = epoch

    def ended(self, name: str, error: str | None) -> None:
        self.ends[name] = error


@pytest.mark.ray
def test_trials_share_processes_survive_deaths_and_are_stopped(tmp_path: Path) -> None:
    plain, dying = _Watcher(), _Watcher()
    where = Slots(2, 1.0, 0.0)
    searched = {
        f"t{value}": {"name": f"t{value}", "value": float(value), "folder": str(tmp_path)} for value in (9, 8, 1, 2, 3)
    }
    with connected(cpus=2, gpus=1):  # Ray only counts what it is told of
        run_trials(work, searched, where, tmp_path / "ray", plain, Halving(6, 2))
        processes = set((tmp_path / "processes").read_text().split())
        some = {"bad": {"name": "bad", "dies": True, "folder": str(tmp_path)}, "t9": searched["t9"]}
        run_trials(work, some, where, tmp_path / "ray", dying)
        (tmp_path / "processes").unlink()
        alone = {name: searched[name] for name in ("t1", "t2")}
        run_trials(work, alone, Slots(1, 1.0, 0.0, fresh=True), tmp_path / "ray", _Watcher())
        assert len(set((tmp_path / "processes").read_text().split())) == 2
        pair = {name: {**searched["t1"], "name": name, "waits_for": other} for name, other in ("ab", "ba")}
        run_trials(work, pair, Slots(2, 1.0, 0.5), tmp_path / "ray", _Watcher())
    assert sorted(plain.begun) == sorted(searched)
    assert plain.ends == dict.fromkeys(searched)
    assert len(processes) <= 2  # for five trials
    assert (tmp_path / "t9").read_text() == "6 cpu"
    # the later ones are worse than the better third of those before, so they end where they are compared
    assert plain.epochs["t9"] == 6
    assert {plain.epochs[name] for name in ("t1", "t2", "t3")} == {2}

    placed = {(tmp_path / f"{name}.gpus").read_text() for name in pair}
    assert len(placed) == 2  # two processes, at the same time
    assert {where.split()[1] for where in placed} == {"0"}  # on the same GPU
    assert (tmp_path / "a").read_text() == "6 cuda"

    assert (tmp_path / "deaths").read_text() == "xx"  # tried once more
    assert dying.ends["t9"] is None
    assert dying.ends["bad"]


def test_a_driver_that_is_told_to_end_decides_nothing_about_its_trials(tmp_path: Path) -> None:
    """Tune ends trials as if their scheduler had stopped them; those of a driver that ends go on another time."""

    def tell(content: dict[str, object]) -> None:
        del content
        raise SystemExit

    report = _Reporter(tell, tmp_path / "told-to-end")
    assert not report(1, 0.5)
    assert report.stopped
    again = _Reporter(tell, tmp_path / "told-to-end")
    (tmp_path / "told-to-end").touch()
    with pytest.raises(SystemExit):
        again(1, 0.5)
    assert not again.stopped


def test_without_ray_trials_run_here_in_their_order(tmp_path: Path) -> None:
    watcher = _Watcher()
    trials = {name: {"name": name, "value": 1.0, "folder": str(tmp_path), "device": "cpu"} for name in "ba"}
    one_after_the_other(work, trials, watcher)
    assert watcher.begun == ["b", "a"]
    assert watcher.epochs == {"a": 6, "b": 6}
    assert watcher.ends == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("at_once", "gpus", "total", "expected"),
    [
        (None, None, {"CPU": 8.0}, Slots(8, 1.0, 0.0)),
        (2, None, {"CPU": 8.0}, Slots(2, 4.0, 0.0)),
        (None, None, {"CPU": 8.0, "GPU": 2.0}, Slots(2, 4.0, 1.0)),
        (6, None, {"CPU": 8.0, "GPU": 2.0}, Slots(6, 1.0, 1 / 3)),
        (1, True, {"CPU": 8.0, "GPU": 2.0}, Slots(1, 8.0, 1.0)),
        (None, False, {"CPU": 4.0, "GPU": 2.0}, Slots(4, 1.0, 0.0)),
    ],
)
def test_as_many_trials_as_fit_share_what_there_is(
    at_once: int | None, gpus: bool | None, total: dict[str, float], expected: Slots
) -> None:
    assert slots(at_once, gpus=gpus, total=total) == expected


@pytest.mark.parametrize(
    ("at_once", "gpus", "told"), [(3, None, "2 CPUs, and each trial needs one"), (1, True, "no node of Ray has a GPU")]
)
def test_what_does_not_fit_is_told(at_once: int, gpus: bool | None, told: str) -> None:
    with pytest.raises(PreflightError, match=told):
        slots(at_once, gpus=gpus, total={"CPU": 2.0})
