"""Verbs on a tiny model, the calls by which they write, and what must hold after a fault in any of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import speaking

EPOCHS = ["--epochs", "2"]
TEXT = ["--text", "pydoc", "--samples", "4", "--length", "32"]
STUDY = """models: [m]
metrics: [bi, reverse]
calibration: {text: pydoc, samples: 4, length: 32}
drop: [2]
heal: {data: pydoc, last: 1, epochs: 1, max_length: 32, max_samples: 16}
evaluation: {perplexity: [pydoc], samples: 4, length: 32, collapse: false}
"""
VOLATILE = {"seconds", "peak_rss_bytes", "tokens_per_s"}  # of results: they differ from run to run


@functools.cache
def why_not_traced() -> str:
    """Why strace cannot hold another process here; "" where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        tried = subprocess.Popen(["strace", "-p", str(sleeper.pid)], stderr=subprocess.PIPE, text=True)
        assert tried.stderr
        said = tried.stderr.readline()
        sleeper.kill()
        tried.wait()
    return "" if "attached" in said else f"strace may not attach: {said}"


@dataclass(frozen=True)
class Verb:
    """A command that writes. output: what it makes; again: words to add where it goes on; first: what must be there."""

    words: tuple[str, ...]
    output: str
    again: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


VERBS = {
    "score": Verb(("score", "m", *TEXT, "--metric", "bi,ppl", "-o", "out.json"), "out.json"),
    "plan": Verb(("plan", "m", "--metric", "reverse", "--drop", "2", "-o", "out.json"), "out.json"),
    "prune": Verb(
        ("prune", "m", "--metric", "reverse", "--drop", "2", "--max-shard-size", "100KB", "-o", "out"), "out"
    ),
    "repair": Verb(
        ("prune", "m", "--layers", "3-4", "--repair", "--repair-samples", "8", *TEXT[:2], *TEXT[-2:], "-o", "new/out"),
        "new/out",
    ),
    "heal": Verb(
        (
            "heal",
            "m",
            "--data",
            "pydoc",
            "--max-length",
            "32",
            "--max-samples",
            "24",
            "--last",
            "1",
            *EPOCHS,
            "-o",
            "out",
        ),
        "out",
        again=("--resume",),
    ),
    "study": Verb(("study", "study.yaml", "runs"), "runs"),
    "report": Verb(("report", "runs", "-o", "out.html"), "out.html", first=("study", "study.yaml", "runs")),
}


@dataclass
class Server:
    """server.py, and where it says what."""

    folder: Path
    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def run(self, place: Path, words: Sequence[str], **faults: Any) -> Ran:
        """A command in a folder. trace: strace's log; inject: what it injects; limits: of resources."""
        said = self.folder / "said.txt"
        asked = {"words": list(words), "folder": str(place), "said": str(said), **faults}
        asked["environment"] = {"SHORTSTACK_CACHE": str(place / "cache")}
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return Ran(code, said.read_text(encoding="utf-8", errors="replace"))


@dataclass(frozen=True)
class Ran:
    code: int
    said: str

    @property
    def errors(self) -> list[str]:
        """The messages that it ended with."""
        return [line for line in self.said.splitlines() if line.startswith("Error: ")]


def prepared(server: Server, verb: Verb, place: Path) -> Path:
    """A folder in which the verb can run."""
    speaking(place / "m")
    (place / "study.yaml").write_text(STUDY)
    if verb.first:
        ran = server.run(place, verb.first)
        assert ran.code == 0, ran.said
    return place


def points(trace: Path, place: Path, *, first_thread: bool = False) -> list[tuple[str, int]]:
    """Each call that touched the folder: its name, and how many of that name the thread had made.

    first_thread: of threads beside the first only those calls that the first never makes, since strace counts by thread.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], str] = {}
    lines = [match for line in trace.read_text(errors="replace").splitlines() if (match := CALL.match(line))]
    main = lines[0]["pid"] if lines else ""
    own = {match["call"] for match in lines if match["pid"] == main}
    for match in lines:
        pid, call = match["pid"], match["call"]
        counts[pid, call] += 1
        writes = f"{place}/" in match["rest"] and "O_RDONLY" not in match["rest"]
        if writes and (not first_thread or pid == main or call not in own):
            found.setdefault((call, counts[pid, call]), pid)
    return list(found)


CALL = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<rest>.*)")


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """About so many of them, evenly; all where they are fewer."""
    step = max(1.0, len(found) / count)
    return [found[round(place * step)] for place in range(min(count, len(found))) if round(place * step) < len(found)]


def digest_of(place: Path, names: Sequence[str]) -> dict[str, str]:
    """The digest of each file below some of a folder's names, without what differs from run to run."""
    files = [path for name in names for path in _files(place / name)]
    return {str(path.relative_to(place)): _digest(path) for path in files}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(each for each in path.rglob("*") if each.is_file())


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "shortstack.json" or path.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lasting(item) for key, item in value.items() if key not in VOLATILE}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


RESULTS = ("*.safetensors", "config.json", "scores.json", "evaluation.json")


def results_of(place: Path, verb: Verb) -> dict[str, str]:
    """The digests of what the verb gives: of a study its artefacts, by their keys."""
    if verb.output == "runs":
        files = [path for pattern in RESULTS for path in (place / "runs" / "artefacts").glob(f"*/{pattern}")]
        return {str(path.relative_to(place)): _digest(path) for path in sorted(files)}
    if verb.output.endswith(".html"):
        text = (place / verb.output).read_text()
        return {verb.output: re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+", "", text)}
    return {
        name: each for name, each in digest_of(place, [verb.output]).items() if not name.endswith("shortstack.json")
    }


Digests = Mapping[str, str]


def check_after(server: Server, place: Path, verb: Verb, source: Digests, expected: Digests) -> str:
    """What is wrong after a fault, in words; "" where nothing is half-written and a second run ends as a whole one."""
    if digest_of(place, ["m"]) != source:
        return "the source has changed"
    out = place / verb.output
    if out.is_dir() and (out / "config.json").exists():
        ran = server.run(place, ["verify", verb.output])
        if ran.code:
            return f"what is there is not whole: {ran.said}"
        shutil.rmtree(out)
    elif out.suffix == ".json" and out.exists():
        json.loads(out.read_text())
        out.unlink()
    again = (
        verb.words if verb.output.endswith((".json", ".html")) or verb.output == "runs" else (*verb.words, *verb.again)
    )
    ran = server.run(place, again)
    if ran.code:
        return f"a second run fails: {ran.said[-2000:]}"
    if results_of(place, verb) != expected:
        return "a second run gives something else"
    known = {"m", "cache", "study.yaml", verb.output.split("/")[0], "runs" if verb.first else "m"}
    left = sorted({path.name for path in place.iterdir()} - known)
    left += [str(path) for path in place.rglob("*.partial-*") if "cache" not in path.parts]
    return f"left behind: {left}" if left else ""
