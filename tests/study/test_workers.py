"""Where steps run: processes of this machine, and Ray; what is lost is said, or run again."""

import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from shortstack.errors import InputError
from shortstack.study import run_study
from shortstack.study.grid import Resources
from shortstack.study.workers import local, ray
from studies import SHORT, STUDY, found, inline, make_data, write_study
from tasks import dies, its_process


def gone(pid):
    """Whether a process has ended, or is about to."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        threading.Event().wait(0.02)
    return False


def test_a_process_is_used_again_and_ends_with_its_launcher():
    with local(1) as launch:
        assert launch.width == 1
        first, second = (launch.submit(its_process, None, Resources()).result() for _ in range(2))
    assert first == second != os.getpid()
    assert gone(first)


def test_a_lost_process_fails_its_task_alone():
    with local(1) as launch:
        before = launch.submit(its_process, None, Resources()).result()
        assert isinstance(launch.submit(dies, None, Resources()).exception(), BrokenProcessPool)
        assert launch.submit(its_process, None, Resources()).result() != before


def test_an_exception_ends_what_runs():
    seen = []

    def interrupted():
        with local(1) as launch:
            seen.append(launch.submit(its_process, None, Resources()).result())
            launch.submit(time.sleep, 600, Resources())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(seen[0])


def test_some_worker_is_needed():
    with pytest.raises(InputError, match="at least 1"), local(0):
        pass


NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    """One node of one CPU and, as Ray is told, one GPU."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("OMP_NUM_THREADS", "1")
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        yield made
        made.shutdown()


def test_a_step_on_a_cluster_gets_a_gpu_where_there_are_some(cluster):
    with ray(cluster.address) as launch:
        assert not launch.here
        assert launch.width == 1
        assert launch.submit(os.getenv, "CUDA_VISIBLE_DEVICES", Resources()).result() == "0", "--device auto sees it"
        assert launch.submit(os.getenv, "CUDA_VISIBLE_DEVICES", Resources(gpus=0)).result() != "0"


@pytest.mark.parametrize("text", [SHORT, pytest.param(STUDY, marks=pytest.mark.slow)], ids=["short", "long"])
def test_a_study_on_two_nodes_of_which_one_is_lost_ends_as_it_does_here(
    cluster, tmp_path, monkeypatch, own_cache, text
):
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    study, lost, second = write_study(tmp_path, text), [], cluster.add_node(**NODE)

    def lose(_stage, done, _total, /, *, note=""):
        if not lost and (text == SHORT or done >= 3) and "," in note:  # two steps run, so one of them there
            lost.append(done)
            cluster.remove_node(second, allow_graceful=False)

    outcome = run_study(study, tmp_path / "ray", launcher=partial(ray, cluster.address), progress=lose)
    assert lost
    assert (outcome.done, outcome.failed) == (outcome.trials, 0), outcome.failures
    run_study(study, tmp_path / "runs", launcher=inline)
    assert found(tmp_path / "ray") == found(tmp_path / "runs")


def test_ray_says_at_once_when_nothing_answers():
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="ray start"), ray("127.0.0.1:1"):
        pass
