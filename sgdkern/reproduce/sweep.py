"""A sweep: many jobs in parallel processes, each begun when what it needs is there, none done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

from sgdkern.reproduce.job import Job, complete, file_of, with_needs
from sgdkern.training import threads


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        stage: The figure that the jobs are for.
        done: Jobs done, those of earlier figures and earlier calls included.
        total: Jobs in all.
        latest: The title of the job that was done last; empty at the start.
    """

    stage: str
    done: int
    total: int
    latest: str = ""


OnProgress = Callable[[Progress], None]


def sweep(
    jobs: Iterable[Job], folder: Path, *, processes: int = 1, stage: str = "", on_progress: OnProgress | None = None
) -> None:
    """Do all jobs that are not done yet, and what they need.

    Args:
        jobs: The jobs that are asked for.
        folder: The folder of all results.
        processes: How many jobs at once, each on one thread; with 1 they are done in this process. The results are the
            same to the bit.
        stage: What the jobs are for, to be told with the progress.
        on_progress: Told how far it is.
    """
    ordered = list(with_needs(tuple(jobs)))
    waiting = [job for job in ordered if not file_of(job, folder).exists()]
    done = set(ordered) - set(waiting)

    def tell(latest: str) -> None:
        if on_progress is not None:
            on_progress(Progress(stage, len(done), len(ordered), latest))

    tell("")
    if processes == 1:
        for job in waiting:
            _complete(job, folder)
            done.add(job)
            tell(job.title)
        return
    if not waiting:
        return
    running: dict[Future[None], Job] = {}
    others = set(active_children())
    with ProcessPoolExecutor(min(processes, len(waiting)), mp_context=get_context("spawn")) as pool:
        try:
            while waiting or running:
                for job in [job for job in waiting if done.issuperset(job.needs)]:
                    waiting.remove(job)
                    running[pool.submit(_complete, job, folder)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    future.result()
                    done.add(job)
                    tell(job.title)
        except BaseException:  # stopped: what runs now would go on for minutes, and nobody would wait for it
            for process in set(active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)  # which waits for the thread that reaps them
            raise


def _complete(job: Job, folder: Path) -> None:
    """One job on one thread, so that its result depends on its description only."""
    with threads(1):
        complete(job, folder)
