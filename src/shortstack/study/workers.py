"""Where steps run: local() in processes of this machine, ray() on a Ray cluster, which also retries tasks of lost nodes."""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from shortstack.errors import InputError
from shortstack.machine.options import OneOf, check_installed, options

if TYPE_CHECKING:
    from shortstack.study.grid import Resources

RETRIES = 3  # of a task whose worker or node is lost


@dataclass(frozen=True)
class Launch:
    """Runs tasks. width: how many at once. submit(function, argument, resources) returns a future of the result.

    The worker imports the function by its name; argument and result are pickled. here: tasks run on this machine.
    """

    width: int
    submit: Callable[[Callable[[Any], Any], Any, Resources], Future[Any]]
    here: bool = True


@contextmanager
def local(workers: int = 1) -> Iterator[Launch]:
    """Run tasks in processes of this machine, which end with this one; resources are ignored.

    A task whose process dies fails with BrokenProcessPool; the next gets a new process.
    """
    spawn = multiprocessing.get_context("spawn")
    followed, sender = spawn.Pipe(duplex=False)
    lanes, own = ThreadPoolExecutor(workers, "lane"), threading.local()

    def call(function: Callable[[Any], Any], argument: Any) -> Any:
        if not hasattr(own, "process"):
            own.process = ProcessPoolExecutor(1, spawn, _follow, (followed, _threads(workers)))
        try:
            return own.process.submit(function, argument).result()
        except BrokenProcessPool:
            del own.process
            raise

    try:
        yield Launch(workers, lambda function, argument, _resources: lanes.submit(call, function, argument))
    finally:
        sender.close()  # ends the processes, whatever they do
        lanes.shutdown(cancel_futures=True)


def _threads(workers: int) -> int | None:
    """Return the threads that each of several workers computes with; None to leave them as they are."""
    return None if workers == 1 or "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // workers)


def _follow(followed: Connection, threads: int | None) -> None:
    """End this worker when the other end of a pipe is closed, as it is when its process is killed."""

    def watch() -> None:
        wait([followed])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported


@contextmanager
def ray(address: str = "local", workers: int | None = None) -> Iterator[Launch]:
    """Run tasks on a Ray cluster: its address, `auto` for that of this machine, or `local` to start one here.

    workers: tasks at once; by default as many as the cluster has CPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    check_installed("ray", "ray", option="ray", why="which runs steps on a cluster")
    import ray as cluster

    try:
        _reach(address)
        cluster.init(address, include_dashboard=False, log_to_driver=False)
    except OSError as error:
        message = f"no Ray cluster at {address}: {error}; start one with: ray start --head"
        raise InputError(message, option="ray") from error

    def submit(function: Callable[[Any], Any], argument: Any, resources: Resources) -> Future[Any]:
        some = min(1.0, cluster.cluster_resources().get("GPU", 0.0))  # a task that takes none may see none
        gpus = some if resources.gpus is None else resources.gpus
        memory = int(resources.memory * 1e9) if resources.memory else None
        how = {"num_cpus": resources.cpus, "num_gpus": gpus, "memory": memory, "max_retries": RETRIES}
        future: Future[Any] = cluster.remote(function).options(**how).remote(argument).future()
        return future

    try:
        yield Launch(workers or max(1, int(cluster.cluster_resources().get("CPU", 1))), submit, here=False)
    finally:
        cluster.shutdown()


def _reach(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself tries for minutes."""
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

    def launch(self) -> AbstractContextManager[Launch]:
        """Start what runs the steps, on Ray or on this machine."""
        return ray(self.ray, self.workers) if self.ray else local(self.workers or 1)
