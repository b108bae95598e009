"""One process at a time makes an output."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from shortstack.errors import OutputError
from shortstack.machine.locks import OutputLock

HOLDING = """
import sys
from pathlib import Path
from shortstack.machine.locks import OutputLock
with OutputLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(output):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_the_first_has_ended(tmp_path):
    output = tmp_path / "new" / "out"
    with holding(output) as process:
        with pytest.raises(OutputError, match="no other process is making"), OutputLock(output):
            pytest.fail("held twice")
        process.stdin.close()
    with OutputLock(output):
        assert [path.name for path in output.parent.iterdir()] == [".out.lock"]
    assert list(output.parent.iterdir()) == []


def test_a_lock_goes_with_a_process_that_is_killed(tmp_path):
    with holding(tmp_path / "out") as process:
        os.kill(process.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with OutputLock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


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
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_count, args=(place, 50)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert place.read_text() == "100"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="an output that can be written"), OutputLock(tmp_path / "file" / "out"):
        pytest.fail("held")
