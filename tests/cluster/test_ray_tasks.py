"""Units of work on a real Ray: one whose process dies is done again, and told where it dies each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import ray_tasks
from cluster.failures import PreflightError, WorkerFailed
from cluster.ray_tasks import on_ray
from tests.helpers.task_work import work


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_a_unit_whose_process_dies_is_done_again_and_told_where_it_always_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaths(unit: str) -> int:
        return len(list(tmp_path.glob(f"{unit}-*")))

    monkeypatch.setattr(ray_tasks, "_RETRIES", 1)  # each death takes Ray seconds
    with on_ray(tmp_path, [tmp_path]) as each:
        answers = each(work, [("a", 1, tmp_path), ("b", 0, tmp_path), ("c", 9, tmp_path)])
        assert [next(answers), next(answers)] == ["A", "B"]  # in the order of the units
        with pytest.raises(
            PreflightError, match=r"worked on a unit \(\('c', 9.* died 2 times .*more and smaller units"
        ):
            next(answers)
        with pytest.raises(WorkerFailed, match="'d' is not work") as failed:
            list(each(work, [("d", -1, tmp_path)]))
    assert (deaths("a"), deaths("c"), deaths("d")) == (1, 2, 0)  # an exception is not tried again
    assert failed.value.kind == "ValueError"
