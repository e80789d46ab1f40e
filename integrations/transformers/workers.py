"""Run the same function on many jobs: here, one after another, or on the workers of dask.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOCAL = "local"


class Job(Protocol):
    """What a function is run on."""

    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Job)


@contextmanager
def connected(cluster: Any, workers: int | None) -> Iterator[Any]:
    """A ``distributed.Client``, closed at the end if it was made here; None for this process alone.

    Parameters
    ----------
    cluster : None, str or distributed.Client
        The address of a scheduler, or ``"local"`` for processes started here.
    workers : int, optional
        How many of these, by default one for each core.

    Raises
    ------
    ImportError
        If dask.distributed is not installed.
    ConnectionError
        If no scheduler answers.
    """
    if cluster is None:
        yield None
        return
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("cluster: dask.distributed is not installed; pip install 'tnmpo[cluster]'") from error
    if isinstance(cluster, Client):
        yield cluster
    elif cluster == LOCAL:
        # each its share of the threads that torch would use here
        env = {} if workers is None else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", env=env
            ) as local,
            Client(local) as client,
        ):
            yield client
    else:
        try:
            remote = Client(cluster)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"cluster: no scheduler answers at {cluster!r} ({error}); start it first") from error
        with remote as client:
            yield client


def run_each(function: Callable[[J], None], jobs: Sequence[J], client: Any, title: str, *, n_done: int = 0) -> None:
    """Call the function on every job; its results are what it writes.

    Parameters
    ----------
    function, jobs
        Of a module that the workers can import.
    client : distributed.Client or None
    title : str
        Of the progress bar.
    n_done : int
        Jobs of the same kind that were done before, for the progress bar.

    Raises
    ------
    RuntimeError
        If the workers that had a job died again and again.
    """
    with _progress(title, len(jobs) + n_done, n_done) as advance:
        if client is not None:
            _run_remotely(function, jobs, client, advance)
            return
        for job in jobs:
            function(job)
            advance()


def _run_remotely(function: Callable[[J], None], jobs: Sequence[J], client: Any, advance: Callable[[], None]) -> None:
    from dask.distributed import KilledWorker, as_completed

    # A job whose worker died goes to another one, as often as the scheduler allows; a job that raised does not.
    futures = {client.submit(function, job, pure=False): job for job in jobs}
    try:
        for future in as_completed(futures):
            try:
                future.result()
            except KilledWorker as error:
                raise RuntimeError(
                    f"{futures[future].name}: the workers that had it died ({error}); give them more memory, see "
                    "their logs, then start again: what is done is kept"
                ) from error
            advance()
    finally:
        client.cancel(list(futures))


@contextmanager
def _progress(title: str, total: int, n_done: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, completed=n_done)
        yield lambda: progress.advance(task)
