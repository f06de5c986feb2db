"""Saves beside the training: on a GPU an epoch of a small catalogue takes less time than writing its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from trainer.remote_runs import storage_of, store_checkpoint


class Saver:
    """Runs saves one after the other. background: beside the training, else while the caller waits.

    run_dir: the run, which is stored after each save if it belongs on object storage.
    """

    def __init__(self, *, background: bool, run_dir: Path | None = None) -> None:
        self._storage = storage_of(run_dir) if run_dir is not None else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._running: Future[object] | None = None

    def save(self, write: Callable[[], object]) -> None:
        """Run `write`, once the save before it has ended. What it reads must not change until it has ended.

        Raises what that save raised, and does not run `write` then; without background, what `write` raises.
        """
        self.finish()
        if self._pool is None:
            self._do(write)
        else:
            self._running = self._pool.submit(self._do, write)

    def _do(self, write: Callable[[], object]) -> None:
        write()
        if self._storage is not None:
            store_checkpoint(self._storage)

    def finish(self) -> None:
        """Wait until nothing runs. Raises what the last save raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait until nothing runs, and end. What a save raised is lost: something else is being raised."""
        self._running = None
        if self._pool is not None:
            self._pool.shutdown(wait=True)
