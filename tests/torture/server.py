"""Runs commands in forks of a process that has imported everything, under strace where a fault is asked for.

A line of JSON on stdin asks, a line on stdout answers; a run takes as long as the verb itself, without the imports.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

CALLS = "openat,write,pwrite64,copy_file_range,fsync,fdatasync,rename,renameat,renameat2,mkdir,unlink,unlinkat"


def preload() -> None:
    """Import what the verbs import, so that the calls that strace counts are the verb's own.

    The steps of studies run in this process: workers of their own would import everything again.
    """
    from shortstack.healing import training
    from shortstack.shrinking import reference
    from shortstack.study import workers
    from studies import inline

    for name in ("shortstack.evaluation.harness", "lm_eval"):
        with suppress(ImportError):  # the oldest releases come without
            importlib.import_module(name)
    workers.local = lambda _workers=1: inline()
    reference.TIMING = replace(reference.TIMING, prompt=8, new_tokens=2, repeats=2)
    training.KEEP_SECONDS, training.SHARE = 0.0, 1e9  # a state after every step, so that faults meet it


def call(words: list[str]) -> int:
    """The exit code of a command; 70 where it ends in what is no error of ours."""
    from shortstack.cli import main

    sys.argv = ["shortstack", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:  # noqa: BLE001  that is what 70 says
        traceback.print_exc()
        return 70
    return 0


class Said(io.TextIOBase):
    """stderr by writev, which no fault meets: strace counts each thread's calls, and one number may be several calls."""

    def write(self, text: str) -> int:
        os.writev(2, [text.encode()])
        return len(text)


def child(asked: dict[str, Any], gate: int) -> None:
    """In the fork: wait until strace holds it, then run."""
    said = os.open(asked["said"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stderr = Said()
    os.chdir(asked["folder"])
    os.environ |= asked["environment"]
    for name, (soft, hard) in asked.get("limits", {}).items():
        import resource

        resource.setrlimit(getattr(resource, name), (soft, hard))
    os.read(gate, 1)
    code = call(asked["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(asked: dict[str, Any]) -> int:
    """The exit code, or minus the signal that ended it."""
    gate, opened = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opened)
        try:
            child(asked, gate)
        finally:
            os._exit(71)
    os.close(gate)
    tracer = None
    if asked.get("trace"):
        inject = ["-e", f"inject={asked['inject']}"] if asked.get("inject") else []
        shown = ["-xx", "-s", str(2**28)] if asked.get("all") else ["-s", "256"]
        traced = ["-e", f"trace={asked.get('calls', CALLS)}"]
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", *shown, "-p", str(pid), "-o", asked["trace"], *traced, *inject],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr
        while "attached" not in (line := tracer.stderr.readline()):
            assert line, "strace could not attach"
    os.write(opened, b"x")
    os.close(opened)
    _, status = os.waitpid(pid, 0)
    if tracer:
        tracer.wait()
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here.parent / "conformance")]
    preload()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(run(json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
