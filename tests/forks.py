"""Processes forked from the tests', which have imported everything: lives that end, or are killed."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def start(action: Callable[[], object], said: str | Path = os.devnull) -> int:
    """The id of a forked process that does this; said: where its standard error goes."""
    child = os.fork()
    if child == 0:
        code: Any = 70
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            torch.set_num_threads(1)  # threads are not forked
            action()
            code = 0
        except SystemExit as ended:
            code = ended.code
        except BaseException:  # noqa: BLE001  that is what 70 says
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    """Of a process when it has ended; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], object], said: str | Path = os.devnull) -> int:
    return exit_code(start(action, said))
