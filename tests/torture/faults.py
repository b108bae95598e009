"""Verbs on a tiny model, the calls by which they write, and what must hold after a fault in any of them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
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

import pytest
from power import CALLS, unescaped

from documents import data_folder
from studies import lasting
from zoo import speaking

STUDY = """model: m
metric: [bi, reverse]
calibration: {source: pydoc, samples: 4, length: 32}
drop: [2]
heal: {data: pydoc, train_last: 1, num_train_epochs: 1, max_length: 32, max_samples: 16}
evaluation: {perplexity: [pydoc], samples: 4, length: 32, collapse_check: false}
"""
RECIPE = """title: small
plan: {metric: reverse, drop: 2}
heal: {method: partial, train_last: 1, max_steps: 4, max_length: 32, max_samples: 16}
"""
Digests = Mapping[str, Any]
TOLD = ("README.md", "report.html", "shrink.json")  # beside a shortened model; they say how long it took


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
    """A command that writes. again: words to add where it goes on; first: a command that makes what it reads.

    output: what it makes; "" where its result is what it says, in JSON.
    """

    command: str
    output: str = ""
    again: str = ""
    first: str = ""

    @property
    def words(self) -> list[str]:
        return self.command.split()


TEXT, SMALL = (
    "--calibration-data pydoc --num-samples 4 --seq-length 32",
    "--max-length 32 --max-samples 24 --train-last 1 --num-train-epochs 2",
)
SHRINK = (
    "--data lines.jsonl --calibration-data text.txt --num-samples 4 --perplexity text.txt --perplexity-samples 1 "
    "--probe-items 0"
)
VERBS = {
    "score": Verb(f"score m {TEXT} --metric bi,ppl -o out.json", "out.json"),
    "plan": Verb("plan m --metric reverse --drop 2 -o out.json", "out.json"),
    "prune": Verb("prune m --metric reverse --drop 2 -o out", "out"),
    "repair": Verb(
        "prune m --layers 3-4 --repair --repair-samples 8 --calibration-data pydoc --seq-length 32 -o new/out",
        "new/out",
    ),
    "heal": Verb(f"heal m --data pydoc {SMALL} -o out", "out", again="--resume"),
    "study": Verb("study study.yaml -o runs", "runs"),
    "report": Verb("report runs -o out.html", "out.html", first="study study.yaml -o runs"),
    "shrink": Verb(f"shrink m --recipe recipe.yaml {SHRINK} -o out", "out"),
    "evaluate": Verb(
        "evaluate m --perplexity none --tasks piqa,winogrande --data-dir data --limit 4 --no-collapse-check --json"
    ),
}
if importlib.util.find_spec("lm_eval") is None:  # as with the oldest releases
    del VERBS["evaluate"]
EVERY_VERB = pytest.mark.parametrize("name", VERBS)


@dataclass
class Server:
    """server.py, and where it says what."""

    folder: Path
    cache: Path | None = None  # in the folder of the command, if not named
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
        asked["environment"] = {"SHORTSTACK_CACHE": str(self.cache or place / "cache")}
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
        """The messages that it ended with; they may stand behind half of a line that could not be written."""
        return re.findall(r"(?<![A-Za-z])Error: .*", self.said)


@dataclass(frozen=True)
class Whole:
    """A verb that nothing happened to. place: where it ran, under strace; fresh: that folder before it; trace: strace's log.

    source: digests of its model; after: of all that was there in the end; expected: what it gave; pages: of a disk, for it.
    """

    verb: Verb
    place: Path
    fresh: Path
    trace: Path
    source: Digests
    after: Digests
    expected: Digests
    said: str
    pages: int

    def again(self) -> Path:
        """The place as it was before the verb."""
        shutil.rmtree(self.place)
        return shutil.copytree(self.fresh, self.place)


def whole_run(server: Server, verb: Verb, folder: Path) -> Whole:
    place, trace = folder / "place", folder / "trace"
    speaking(place / "m", max_shard_size="100KB")
    data_folder(place / "data")
    rows = [{"text": f"the walk of {number} and one is in order"} for number in range(24)]
    (place / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "text.txt").write_text("the walk visits every layer once and in order " * 120)
    (place / "study.yaml").write_text(STUDY)
    (place / "recipe.yaml").write_text(RECIPE)
    if verb.first:
        ran = server.run(place, verb.first.split())
        assert ran.code == 0, ran.said
    fresh = shutil.copytree(place, folder / "fresh")
    source = digest_of(place, ["m"])
    traced = {} if why_not_traced() else {"trace": str(trace), "calls": CALLS, "all": True}
    ran = server.run(place, verb.words, **traced)
    assert ran.code == 0, ran.said
    after = digest_of(place, [path.name for path in place.iterdir()])
    pages = sum(-(-path.stat().st_size // 4096) for path in _files(place / (verb.output or "none")))
    return Whole(verb, place, fresh, trace, source, after, results_of(place, verb, ran.said), ran.said, pages)


def points(whole: Whole, *, first_thread: bool = False) -> list[tuple[str, int]]:
    """Each call that touched the folder: its name, and how many of that name the thread had made.

    first_thread: of threads beside the first only those calls that the first never makes, since strace counts by thread.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], str] = {}
    lines = [match for line in whole.trace.read_text("latin-1").splitlines() if (match := CALL.match(line))]
    main = lines[0]["pid"] if lines else ""
    own = {match["call"] for match in lines if match["pid"] == main}
    for match in lines:
        pid, call, rest = match["pid"], match["call"], unescaped(match["rest"][:4096])
        counts[pid, call] += 1
        writes = _is_below(whole.place, call, rest) and "O_RDONLY" not in rest
        if call in INJECTED and writes and (not first_thread or pid == main or call not in own):
            found.setdefault((call, counts[pid, call]), pid)
    return list(found)


def _is_below(place: Path, call: str, rest: str) -> bool:
    """Whether a call is on something in the folder, which commands run in: descriptors are said with their paths."""
    names = NAMED.findall(rest) if call in NAMING else ()
    return f"{place}/" in rest or any(not name.startswith("/") for name in names)


NAMING = {"rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"}
INJECTED = NAMING | {"openat", "write", "pwrite64", "copy_file_range", "fsync", "fdatasync"}
NAMED = re.compile(r'"([^"]*)"')
CALL = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<rest>.*)")


def spread(found: Sequence[Any], count: int, start: float = 0.0) -> list[Any]:
    """About so many of them, evenly, the first at a part of the way from one to the next; all where they are fewer."""
    step = max(1.0, len(found) / count)
    places = (round((number + start) * step) for number in range(min(count, len(found))))
    return [found[place] for place in places if place < len(found)]


def few(verb: Verb, points: int) -> int:
    """How many points to try: a few of shrink, which takes seconds."""
    return max(1, points // 4) if verb.words[0] == "shrink" and points < 100 else points


def digest_of(place: Path, names: Sequence[str]) -> dict[str, str]:
    """The digest of each file below some of a folder's names, without what differs from run to run."""
    files = [path for name in names for path in _files(place / name)]
    return {str(path.relative_to(place)): _digest(path, place) for path in files}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(each for each in path.rglob("*") if each.is_file())


def _digest(path: Path, place: Path) -> str:
    content = path.read_bytes().replace(str(place).encode(), b".")
    if path.name == "shortstack.json" or path.suffix == ".json":
        content = json.dumps(lasting(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


RESULTS = ("*.safetensors", "config.json", "scores.json", "evaluation.json")


def results_of(place: Path, verb: Verb, said: str) -> dict[str, Any]:
    """Return what the verb gives: digests, of a study those of its artefacts by their keys, or what it said."""
    if not verb.output:
        found, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])
        return {"said": lasting(found)}
    if verb.output == "runs":
        files = [path for pattern in RESULTS for path in (place / "runs" / "artefacts").glob(f"*/{pattern}")]
        return {str(path.relative_to(place)): _digest(path, place) for path in sorted(files)}
    if verb.output.endswith(".html"):
        text = re.sub(
            r"/[\w./-]+/place\b", ".", (place / verb.output).read_text()
        )  # commands of the study, made elsewhere
        return {verb.output: re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+", "", text)}
    found = digest_of(place, [verb.output])
    return {name: "there" if name.endswith(("shortstack.json", *TOLD)) else each for name, each in found.items()}


PREPARED = {"m", "cache", "data", "lines.jsonl", "text.txt", "study.yaml", "recipe.yaml"}


def check_after(server: Server, whole: Whole, place: Path | None = None) -> str:
    """Say what is wrong after a fault, in words; "" where nothing is half-written and a second run ends as a whole one."""
    verb, place = whole.verb, place or whole.place
    if digest_of(place, ["m"]) != whole.source:
        return "the source has changed"
    out = place / (verb.output or "none")
    if out.is_dir() and (out / "config.json").exists():
        ran = server.run(place, ["verify", verb.output])
        if ran.code:
            return f"what is there is not whole: {ran.said}"
        if not out.with_name(f"{out.name}.partial").exists():  # a shrink that was not cleared up: it is finished
            shutil.rmtree(out)
    elif out.suffix == ".json" and out.exists():
        json.loads(out.read_text())
        out.unlink()
    ran = server.run(place, [*verb.words, *verb.again.split()])
    if ran.code:
        return f"a second run fails: {ran.said[-2000:]}"
    if results_of(place, verb, ran.said) != whole.expected:
        return "a second run gives something else"
    made = {verb.output.split("/")[0], *verb.first.split()[-1:]}
    left = sorted({path.name for path in place.iterdir()} - PREPARED - made)
    left += [str(path) for path in place.rglob("*.partial-*") if "cache" not in path.parts]
    return f"left behind: {left}" if left else ""


def check_said(whole: Whole, ran: Ran) -> str:
    """Say what is wrong with how a verb ended that met a fault; "" where it said so once, or gave its whole result."""
    if ran.code == 0:  # what was not written is no part of the result: a state to go on from, a mark of use
        same = results_of(whole.place, whole.verb, ran.said) == whole.expected
        return "" if same else "it ends well with another result"
    if ran.code not in (1, 2) or "Traceback" in ran.said:
        return f"no error of ours: {ran.said[-1500:]}"
    goes_on = whole.verb.words[0] == "study" and "Failed: " in ran.said  # it says what failed
    return "" if len(ran.errors) == 1 or goes_on else f"{len(ran.errors)} messages: {ran.said[-1500:]}"
