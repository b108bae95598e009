"""Shared by benchmarks: their options, a child process measured from outside, medians and spread, the results files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line has it, before torch is imported
RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests"  # has tiny models
POLL_SECONDS = 0.02


def parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options of every benchmark. rounds: how often contenders take turns."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--smoke", action="store_true", help="tiny sizes, one round: it runs, and nothing is kept")
    return options


def tiny(folder: Path) -> str:
    """A Llama of ten layers of width 16 with a tokenizer of 384 entries, as the tests use."""
    sys.path.insert(0, str(TESTS))
    from zoo import speaking

    return str(speaking(folder, max_position_embeddings=2048, num_hidden_layers=10))


@dataclass(frozen=True)
class Ran:
    """One child process: wall seconds, CPU seconds, and the most memory it held.

    peak_rss is the kernel's own high-water mark, mapped file pages included; peak_anonymous, sampled every 20 ms, leaves
    those out (a reader that maps its input shows the input in the first and not in the second).
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int
    output: str


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end and measure it by wait4.

    A child inherits the high-water mark of the process that started it, so this one imports nothing large.

    Raises:
        RuntimeError: the command failed; the message ends with what it printed last.
    """
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        environment = {**os.environ, **(environment or {})}
        if "--smoke" in sys.argv and command[0] == sys.executable and command[1].endswith(".py"):
            pid = _forked(command[1:], log, environment)
        else:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            pid = process.pid  # while it is held: as it is forgotten it is waited for, and wait4 finds no child
        sampler = _AnonymousSampler(pid)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        code = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read()
    if code:
        raise RuntimeError(f"{shlex.join(command)} ended with {code}: ...{output[-2000:]}")
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, sampler.stop(), output)


def _forked(words: Sequence[str], log: IO[str], environment: Mapping[str, str]) -> int:
    """The id of a fork that runs a script: where nothing is measured, it need not import again what is here."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            os.environ.update(environment)
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:  # noqa: BLE001  said in the log
            traceback.print_exc()
        finally:
            log.flush()
            os._exit(code)
    return pid


class _AnonymousSampler:
    """The largest RssAnon a process shows while it lives."""

    def __init__(self, process: int) -> None:
        self._path, self._peak, self._done = Path(f"/proc/{process}/status"), 0, threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            try:
                found = re.search(r"^RssAnon:\s+(\d+) kB", self._path.read_text(), re.MULTILINE)
            except OSError:
                return
            self._peak = max(self._peak, int(found[1]) * 1024 if found else 0)

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The same names, starting one later each turn, so that no contender always runs first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest to highest)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what slows the machine down for a while slows both sides."""
    return [a / b for a, b in zip(above, below, strict=True)]


def machine() -> dict[str, Any]:
    """CPU, cores, memory, system and load, as the numbers need them to be read."""
    return {
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo"),
        "cpu_family_model": _first(r"cpu family\s*:\s*(\d+)", "/proc/cpuinfo")
        + "/"
        + _first(r"model\s*:\s*(\d+)", "/proc/cpuinfo"),
        "cores": os.cpu_count(),
        "ram_gb": round(int(_first(r"MemTotal:\s+(\d+)", "/proc/meminfo") or 0) * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _first(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text()) if Path(path).exists() else None
    return found[1].strip() if found else ""


def versions(*packages: str) -> dict[str, str]:
    """Python and the named packages, and the commit that was measured."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", "../src"], cwd=here, capture_output=True, text=True, check=False
    )
    found = {"python": platform.python_version(), "last commit of src": commit.stdout.strip()}
    return found | {name: version(name) for name in packages}


def command_line() -> str:
    """How this script was called; of a path outside the repository, only the name."""
    return shlex.join(["python", *(_relative(argument) for argument in sys.argv)])


def _relative(argument: str) -> str:
    path = Path(argument).absolute()
    root = Path(__file__).parents[1]
    if path.is_relative_to(root) and path.exists():
        return str(path.relative_to(root))
    return path.name if Path(argument).is_absolute() else argument


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def save(name: str, data: Mapping[str, Any], sections: Sequence[str], *, smoke: bool = False) -> None:
    """Write results/<name>_<cpu>_<date>.json and .md, smoke: neither; print the latter."""
    where, today = machine_slug(), date.today().isoformat()
    head = [
        f"# {name}: {today}",
        table(("", ""), [(key, value) for key, value in (data["machine"] | data["versions"]).items()]),
        f"Command: `{data['command']}`",
    ]
    text = "\n\n".join([*head, *sections]) + "\n"
    print(text)
    if smoke:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{where}_{today}.md"
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.name} and .json", file=sys.stderr)


def machine_slug() -> str:
    """`intel-xeon-processor-2c`: the CPU and its cores, for a file name."""
    cpu = re.sub(r"\(r\)|\(tm\)|cpu|@.*", " ", str(machine()["cpu"]).lower())
    return re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") + f"-{os.cpu_count()}c"
