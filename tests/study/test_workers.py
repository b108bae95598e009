"""Where steps run: processes of this machine, and Ray; a lost worker costs its task, or the task runs again."""

import os
import time
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from shortstack.errors import InputError
from shortstack.study import run_study
from shortstack.study.grid import Resources
from shortstack.study.workers import local, ray
from studies import SHORT, found, inline, write_study
from tasks import dies, its_process

NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}


def ended(*processes):
    return not psutil.wait_procs([psutil.Process(pid) for pid in processes if psutil.pid_exists(pid)], timeout=60)[1]


def test_a_process_is_used_again_until_it_is_lost():
    with local(1) as launch:
        first, second = (launch.submit(its_process, None, Resources()).result() for _ in range(2))
        assert isinstance(launch.submit(dies, None, Resources()).exception(), BrokenProcessPool)
        third = launch.submit(its_process, None, Resources()).result()
    assert first == second != third
    assert ended(first, third)


def test_an_exception_ends_running_tasks():
    seen = []

    def interrupted():
        with local(1) as launch:
            seen.append(launch.submit(its_process, None, Resources()).result())
            launch.submit(time.sleep, 600, Resources())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended(*seen)


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


def test_a_ray_task_gets_a_gpu_if_there_are_any(cluster):
    with ray(cluster.address) as launch:
        assert (launch.width, launch.here) == (1, False)
        assert launch.submit(os.getenv, "CUDA_VISIBLE_DEVICES", Resources()).result() == "0"
        assert launch.submit(os.getenv, "CUDA_VISIBLE_DEVICES", Resources(gpus=0)).result() != "0"


@pytest.mark.usefixtures("own_cache", "named_data")
def test_a_study_on_ray_survives_a_lost_node(cluster, tmp_path):
    study, lost, second = write_study(tmp_path, SHORT), [], cluster.add_node(**NODE)

    def lose(_stage, done, _total, /, *, note=""):
        if not lost and ";" in note:  # two steps run, so one of them there
            lost.append(done)
            cluster.remove_node(second, allow_graceful=False)

    outcome = run_study(study, tmp_path / "ray", ray=cluster.address, progress=lose)
    assert lost
    assert outcome.failed == 0, outcome.failures
    run_study(study, tmp_path / "runs", launcher=inline)
    assert found(tmp_path / "ray") == found(tmp_path / "runs")


def test_ray_refuses_an_address_at_once_where_nothing_answers():
    pytest.importorskip("ray")
    with pytest.raises(InputError), ray("127.0.0.1:1"):
        pass
