"""A dask worker that ends itself, or another process, in the middle of a run."""

from __future__ import annotations

import os
from pathlib import Path

from dask.distributed import WorkerPlugin


class Saboteur(WorkerPlugin):
    """Once: the worker that has done a task sends a signal as it starts another.

    ``victim`` is a process id, None for the worker itself; ``marker`` a file that is made just before.
    """

    name = "saboteur"

    def __init__(self, victim: int | None, signal: int, marker: Path) -> None:
        self.victim, self.signal, self.marker = victim, signal, marker
        self.done = 0

    def transition(self, key, start, finish, **kwargs):
        self.done += finish == "memory"
        if finish != "executing" or not self.done:
            return
        try:
            self.marker.open("x").close()
        except FileExistsError:
            return
        os.kill(self.victim or os.getpid(), self.signal)
