"""One process at a time makes an output."""

import multiprocessing

import pytest

from shortstack.errors import OutputError
from shortstack.machine.locks import OutputLock

FORKS = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else multiprocessing


def _hold(output, said):
    with OutputLock(output):
        said.send("held")
        said.recv()


@pytest.fixture
def holding(tmp_path):
    """Another process that makes tmp_path/new/out until it is told to end, and the pipe that tells it."""
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=_hold, args=(tmp_path / "new" / "out", there))
    process.start()
    assert here.recv() == "held"
    yield process, here
    process.kill()
    process.join()


def test_another_process_is_refused_until_the_first_has_ended(tmp_path, holding):
    output, (process, pipe) = tmp_path / "new" / "out", holding
    with pytest.raises(OutputError, match="no other process is making"), OutputLock(output):
        pytest.fail("held twice")
    pipe.send("end")
    process.join()
    with OutputLock(output):
        assert [path.name for path in output.parent.iterdir()] == [".out.lock"]
    assert not output.parent.exists(), "it was made for an output that did not come"


def test_a_lock_goes_with_a_process_that_is_killed(tmp_path, holding):
    output, (process, _) = tmp_path / "new" / "out", holding
    process.kill()
    process.join()
    assert [path.name for path in output.parent.iterdir()] == [".out.lock"]
    with OutputLock(output):
        pass
    assert list(output.parent.iterdir()) == []


def test_who_holds_it_may_enter_it_again(tmp_path):
    lock = OutputLock(tmp_path / "out")
    with lock:
        with lock:
            pass
        with pytest.raises(OutputError), OutputLock(tmp_path / "out"):
            pytest.fail("the inner one gave it back")
    with OutputLock(tmp_path / "out"):
        pass


def _count(place, rounds):
    """Add to a number in a file so often, which is lost where two do it at once."""
    done = 0
    while done < rounds:
        try:
            with OutputLock(place):
                before = int(place.read_text())
                place.write_text(str(before + 1))
                done += 1
        except OutputError:
            continue


def test_of_many_rounds_of_two_processes_none_is_lost(tmp_path):
    place = tmp_path / "count"
    place.write_text("0")
    workers = [FORKS.Process(target=_count, args=(place, 50)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert place.read_text() == "100"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="an output that can be written"), OutputLock(tmp_path / "file" / "out"):
        pytest.fail("held")
