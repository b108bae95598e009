"""Where steps run: local() in processes of this machine, ray() on a Ray cluster. Nothing else knows Ray.

Both give a Launch; placement and the retry of what a lost worker was doing are Ray's own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import LifoQueue
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from shortstack.errors import InputError
from shortstack.machine.options import OneOf, check_installed, options
from shortstack.machine.progress import hush_libraries

if TYPE_CHECKING:
    from shortstack.study.grid import Resources

RETRIES = 3  # of a task whose worker or node is lost


@dataclass(frozen=True)
class Launch:
    """width: how many tasks are worth handing over at once. submit(function, argument, needed) gives a future of its result.

    function is found again by its name in the worker, argument and result are pickled. here: tasks run on this machine.
    """

    width: int
    submit: Callable[[Callable[[Any], Any], Any, Resources], Future[Any]]
    here: bool = True


@contextmanager
def local(workers: int = 1) -> Iterator[Launch]:
    """Start so many processes of this machine, which end with this one; resources are not looked at.

    A task whose process dies fails with BrokenProcessPool; the next gets a new process.
    """
    if workers < 1:
        raise InputError(f"{workers} is too small; give at least 1", option="workers")
    spawn = multiprocessing.get_context("spawn")
    followed, sender = spawn.Pipe(duplex=False)
    new = functools.partial(ProcessPoolExecutor, 1, spawn, initializer=_follow, initargs=(followed, _share(workers)))
    idle: LifoQueue[ProcessPoolExecutor] = LifoQueue()
    for _ in range(workers):
        idle.put(new())

    def call(function: Callable[[Any], Any], argument: Any) -> Any:
        process = idle.get()
        try:
            return process.submit(function, argument).result()
        except BrokenProcessPool:
            process = new()
            raise
        finally:
            idle.put(process)

    lanes = ThreadPoolExecutor(workers, "lane")
    try:
        yield Launch(workers, lambda function, argument, _needed: lanes.submit(call, function, argument))
    except BaseException:
        sender.close()  # ends what runs
        raise
    finally:
        lanes.shutdown(cancel_futures=True)
        for _ in range(workers):
            idle.get().shutdown()
        sender.close()


def _share(workers: int) -> int | None:
    """Return how many threads each of several workers computes with; None where the environment says so, or one has all."""
    return None if workers == 1 or "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // workers)


def _follow(followed: Connection, threads: int | None) -> None:
    """End, in a worker, when the other end of a pipe is closed, as it is when who holds it is killed."""

    def watch() -> None:
        wait([followed])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    hush_libraries()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported


@contextmanager
def ray(address: str = "local", workers: int | None = None) -> Iterator[Launch]:
    """Connect to a Ray cluster by its address, `auto` for the one this machine is in; for `local` begin and end one here.

    workers: tasks handed over at once; without a number, as many as the cluster has CPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    check_installed("ray", "ray", option="ray", why="which shares steps out to a cluster")
    import ray as cluster

    try:
        _reach(address)
        cluster.init(address, include_dashboard=False, log_to_driver=False)
    except OSError as error:
        raise InputError(
            f"no Ray cluster at {address}: {error}; start one with: ray start --head", option="ray"
        ) from error

    def submit(function: Callable[[Any], Any], argument: Any, needed: Resources) -> Future[Any]:
        some = min(1.0, cluster.cluster_resources().get("GPU", 0.0))  # a task that takes none may see none
        gpus = some if needed.gpus is None else needed.gpus
        memory = int(needed.memory * 1e9) if needed.memory else None
        task = cluster.remote(function).options(num_cpus=needed.cpus, num_gpus=gpus, memory=memory, max_retries=RETRIES)
        future: Future[Any] = task.remote(argument).future()
        return future

    try:
        yield Launch(workers or max(1, int(cluster.cluster_resources().get("CPU", 1))), submit, here=False)
    finally:
        cluster.shutdown()


def _reach(address: str) -> None:
    """Say at once that nothing answers: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


KEEPS = ("best", "all", "none")


@options
class RunOptions:
    """Where the steps of a study run, and which weights stay."""

    workers: int | None = Field(
        default=None, ge=1, description="Steps to run at once. Default: 1, or the CPUs of the Ray cluster."
    )
    ray: str | None = Field(default=None, description="Run steps on this Ray cluster: an address, auto, or local.")
    keep: Annotated[str, OneOf(KEEPS)] = Field(
        default="best", description="Which weights to keep when no step needs them: best, all or none."
    )

    @property
    def launcher(self) -> Callable[[], AbstractContextManager[Launch]]:
        """The launcher of the steps, on Ray or on this machine."""
        if self.ray:
            return functools.partial(ray, self.ray, self.workers)
        return functools.partial(local, self.workers or 1)


def check_keep(keep: str) -> None:
    """Refuse a word that says nothing about weights."""
    RunOptions(keep=keep)
