"""One process at a time makes an output."""

import multiprocessing

import pytest

from shortstack.errors import OutputError
from shortstack.machine.locks import OutputLock

FORKS = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else multiprocessing


def _hold(output, pipe):
    with OutputLock(output):
        pipe.send("held")
        pipe.recv()


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_another_process_is_refused_until_the_first_has_ended(ends, tmp_path):
    output, (here, there) = tmp_path / "new" / "out", FORKS.Pipe()
    process = FORKS.Process(target=_hold, args=(output, there))
    process.start()
    assert here.recv() == "held"
    with pytest.raises(OutputError), OutputLock(output):
        pytest.fail("held twice")
    here.send("end") if ends == "by itself" else process.kill()
    process.join()
    with OutputLock(output):
        assert [path.name for path in output.parent.iterdir()] == [".out.lock"]
    assert list(output.parent.iterdir()) == []


def test_holder_may_enter_it_again(tmp_path):
    lock = OutputLock(tmp_path / "out")
    with lock:
        with lock:
            pass
        with pytest.raises(OutputError), OutputLock(tmp_path / "out"):
            pytest.fail("the inner one gave it back")
    with OutputLock(tmp_path / "out"):
        pass


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), OutputLock(tmp_path / "file" / "out"):
        pytest.fail("held")
