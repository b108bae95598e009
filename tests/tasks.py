"""Work that workers are asked to do in tests: a module that imports nothing heavy, since each worker imports it anew."""

import os
import signal


def its_process(_nothing: object) -> int:
    return os.getpid()


def dies(_nothing: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
