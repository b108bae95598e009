"""Killed processes, a full disk, two writers of one output, hostile files: nothing half written, read elsewhere or run."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import forks
from command import ended
from plans import plan
from shortstack.checkpoint import Checkpoint, pieces
from shortstack.checkpoint.file_names import TEMPLATES
from shortstack.errors import ShortstackError
from shortstack.exporting.hub import prepared
from shortstack.healing import HealingConfig, Partial, heal
from shortstack.healing.recipes import read_recipe
from shortstack.machine.files import file_digest
from shortstack.pruning import prune
from shortstack.study import run_study
from shortstack.study.grid import read_study
from studies import SHORT, found, inline, write_study
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache", "named_data")
resource = pytest.importorskip("resource")  # not on Windows

# Processes that are killed, or meet a full disk

CALLS = {"copy_file_range", "fsync", "rename", "replace", "mkdir"} & {*dir(os)}  # by which outputs are written


def healed(data: Path, out: Path) -> None:
    small = {"max_length": 32, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    config = HealingConfig(data=str(data / "lines.jsonl"), method=Partial(train_last=1), **small)
    heal(data / "model", out, config)


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "prune": lambda data, out: prune(data / "model", "2-3", out),
    "heal": healed,
    "study": lambda _data, out: run_study(write_study(out.parent, SHORT), out, launcher=inline),
}


def hooked(before: Callable[[int, str], object]) -> None:
    """In this process, call before(number, name) ahead of every call by which outputs are written."""
    pieces.KERNEL_BLOCK_BYTES, numbers = 10_000, itertools.count(1)

    def hook(name: str, real: Callable[..., Any]) -> None:
        def call(*arguments: Any, **options: Any) -> Any:
            before(next(numbers), name)
            return real(*arguments, **options)

        setattr(os, name, call)

    for name in CALLS:
        hook(name, getattr(os, name))


def results(out: Path) -> Any:
    """What a study found, or the digests of a checkpoint's weights and config."""
    if (out / "runs.sqlite").exists():
        return found(out)
    return {path.name: file_digest(path) for path in out.iterdir() if path.name not in ("README.md", "shortstack.json")}


def contents(folder: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["prune", pytest.param("heal", marks=pytest.mark.forks_that_train), "study"])
def test_a_killed_run_leaves_nothing_half_written_and_ends_as_a_whole_one(verb, study_data, tmp_path):
    run, source, count = VERBS[verb], contents(study_data), tmp_path / "count"

    def counted() -> None:
        hooked(lambda number, _name: count.write_text(str(number)))
        run(study_data, tmp_path / "whole")

    assert forks.in_child(counted) == 0
    expected, total = results(tmp_path / "whole"), int(count.read_text())
    for number in {1, total // 3, total // 2, total - 1, total}:
        place = tmp_path / f"killed-{number}"
        place.mkdir()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

        def killed(number: int = number, out: Path = place / "out") -> None:
            hooked(lambda call, _name: call == number and os.kill(os.getpid(), signal.SIGKILL))
            run(study_data, out)

        assert forks.in_child(killed) == -signal.SIGKILL
        assert contents(study_data) == source
        if verb == "study" or not (place / "out").exists():
            assert forks.in_child(lambda out=place / "out": run(study_data, out)) == 0
            assert {path.name for path in place.iterdir()} <= {"out", "study.yaml"}
        assert results(place / "out") == expected
        assert not list((place / "out").rglob("*.partial-*"))


def test_a_full_disk_is_one_message_and_leaves_nothing(study_data, tmp_path):
    said, source = tmp_path / "said", contents(study_data)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        run = ended("prune", study_data / "model", "--layers", "2", "-o", tmp_path / "out", "-q")
        said.write_text(run.stderr)
        sys.exit(run.exit_code)

    assert forks.in_child(limited) in (1, 2)
    assert re.fullmatch("Error: .*\n", said.read_text())
    assert contents(study_data) == source
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_of_two_processes_on_one_output_the_second_is_refused(study_data, tmp_path):
    out = tmp_path / "out"

    def stopped() -> None:
        hooked(lambda _number, name: name == "rename" and os.kill(os.getpid(), signal.SIGSTOP))
        VERBS["prune"](study_data, out)

    first = forks.start(stopped)
    os.waitpid(first, os.WUNTRACED)  # it is about to give the output its name
    assert ended("prune", study_data / "model", "--layers", "1", "-o", out).exit_code == 2
    os.kill(first, signal.SIGCONT)
    assert forks.exit_code(first) == 0
    assert Checkpoint.open(out).record["plan"]["removed"] == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Files that lie, as changes to the folder of a pruned model; what they name lies beside it, with a canary

CANARY, ELSEWHERE, RAN = "canary-7f3a", "../elsewhere", "ran"
TARGETS = {"model.safetensors": "x.safetensors", TEMPLATES: "."}
CODE = "import pathlib\npathlib.Path({!r}).touch()\n"
MARKUP = "<img src=x onerror=alert(1)>[a](https://evil.example)`|\x1b[31m\n```\n"
REACHING = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"
Lie = Callable[[Path], object]


def edit(name: str, **fields: Any) -> Lie:
    """Set fields of a JSON file; of those that are functions, what they make of the folder."""

    def lie(model: Path) -> None:
        values = {key: value(model) if callable(value) else value for key, value in fields.items()}
        (model / name).write_text(json.dumps({**json.loads((model / name).read_text()), **values}))

    return lie


def write(name: str, text: str) -> Lie:
    return lambda model: (model / name).write_text(text, encoding="utf-8", errors="surrogateescape")


def manifest(name: str) -> Lie:
    def files(model: Path) -> Any:
        secret = model / ELSEWHERE / "secret.json"
        listed = {"size": secret.stat().st_size, "sha256": file_digest(secret)}
        return {**json.loads((model / "shortstack.json").read_text())["files"], name.format(model.parent): listed}

    return edit("shortstack.json", files=files)


def index(name: str) -> Lie:
    def lie(model: Path) -> None:
        weight_map = dict.fromkeys(Checkpoint.open(model).tensors, name.format(model.parent))
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if name != "other.safetensors":
            (model / "model.safetensors").unlink()

    return lie


def link(name: str) -> Lie:
    def lie(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to((model / ELSEWHERE / TARGETS.get(name, "secret.json")).resolve())

    return lie


def header(length: int | None = None, **entry: Any) -> Lie:
    """Change the header of the weights: its length, or what it tells of one tensor."""

    def lie(model: Path) -> None:
        data = (model / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + size])
        told[next(name for name in told if name != "__metadata__")] |= entry
        new = json.dumps(told).encode()
        (model / "model.safetensors").write_bytes((length or len(new)).to_bytes(8, "little") + new + data[8 + size :])

    return lie


def code(model: Path) -> None:
    """Python and pickles beside the model, the first named by its configs."""
    (model / "own.py").write_text(CODE.format(str(model.parent / RAN)))
    (model / "pytorch_model.bin").write_bytes(b"cos\nmkdir\n(S'" + str(model.parent / RAN).encode() + b"'\ntR.")
    for name in ("config.json", "tokenizer_config.json"):
        edit(name, auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": [None, "own.T"]})(
            model
        )


SECRET, WEIGHTS = f"{ELSEWHERE}/secret.json", f"{ELSEWHERE}/x.safetensors"
LISTED = ("{0}/elsewhere/secret.json", SECRET, r"..\elsewhere\secret.json", "CONFIG.json", f"{TEMPLATES}/../{SECRET}")
INDEXED = ("{0}/elsewhere/x.safetensors", WEIGHTS, "other.safetensors", "MODEL.safetensors")
LINKED = ("config.json", "tokenizer.json", "README.md", "notes.txt", "merges.txt", "model.safetensors", TEMPLATES)
REFUSED: dict[str, Lie] = {
    **{f"manifest: {name}": manifest(name) for name in LISTED},
    **{f"index: {name}": index(name) for name in INDEXED},
    **{f"link: {name}": link(name) for name in LINKED},
    "weights by name": edit("config.json", transformers_weights=WEIGHTS),
    "another config": edit("config.json", configuration_files=[f"{ELSEWHERE}/config.4.0.0.json"]),
    "another tokenizer": edit("tokenizer_config.json", fast_tokenizer_files=[f"{ELSEWHERE}/tokenizer.4.0.0.json"]),
    "a vocabulary elsewhere": edit("tokenizer_config.json", vocab_file=lambda model: str((model / SECRET).resolve())),
    "a type of its own": edit("config.json", model_type="own", auto_map={"AutoConfig": "own.C"}),
    "markup: type": edit("config.json", model_type=MARKUP),
    "markup: verb": edit("shortstack.json", verb=MARKUP),
    "size: header": header(2**63),
    "size: shape": header(shape=[2**40, 2**40]),
    "size: layers": edit("config.json", num_hidden_layers=10**9),
    "size: width": edit("config.json", hidden_size=2**40, intermediate_size=2**40),
    "size: depth of JSON": write("config.json", "[" * 100_000),
}
HARMLESS: dict[str, Lie] = {  # what they say is not believed
    "code": code,
    "template": write("chat_template.jinja", REACHING),
    "markup: architecture": edit("config.json", architectures=[MARKUP]),
    "markup: source": edit("shortstack.json", source={"id": MARKUP}),
    "markup: licence": write("README.md", f"---\nlicense: {json.dumps(MARKUP)}\n---\n"),
    "metadata that is none": write("README.md", "---\n: [\udcff\n---\n"),
    "markup: end of a text": edit("tokenizer_config.json", eos_token=f"</s>{MARKUP}"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole") / "place"
    prune(Checkpoint.open(speaking(place / "source")), plan(8, layers="3-4"), place / "m")
    shutil.copytree(place / "source", place / "elsewhere")
    (place / "elsewhere" / "model.safetensors").rename(place / "elsewhere" / "x.safetensors")
    for name in ("secret.json", "config.4.0.0.json", "tokenizer.4.0.0.json", "secret.jinja"):
        (place / "elsewhere" / name).write_text(json.dumps({"model_type": "llama", CANARY: 1}))
    return place


@pytest.mark.parametrize("lie", [*REFUSED, *HARMLESS])
def test_a_checkpoint_that_lies_is_refused_or_not_believed(lie, whole, tmp_path, monkeypatch):
    place = shutil.copytree(whole, tmp_path / "place")
    monkeypatch.chdir(place)
    (REFUSED | HARMLESS)[lie](place / "m")
    before = contents(place)
    pruned = ended("prune", "m", "--layers", "2", "-o", "out", "-q")
    assert pruned.exit_code == (2 if lie in REFUSED else 0), pruned.stderr
    assert not re.search("Traceback|\x1b", pruned.stderr)
    written = {path.name: path.read_bytes() for path in (place / "out").rglob("*")}
    card = written.get("README.md", b"").decode().partition("\n---\n")[2]
    assert not [mark for mark in ("<img", "[a](") if mark in card]
    assert not {"own.py", "pytorch_model.bin"} & written.keys()
    shutil.rmtree(place / "out", ignore_errors=True)
    with suppress(ShortstackError):
        for file in prepared(Checkpoint.open("m"), "org/m", licence="mit"):
            with file.as_file() as content:
                written[f"upload/{file.path_in_repo}"] = content.read()
    assert not [name for name, content in written.items() if CANARY.encode() in content]
    assert contents(place) == before
    assert not (place / RAN).exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "code in a tag": "title: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{ran}]]\n",
    "a bomb of aliases": f"{BOMB}metrics: *i\ntitle: *i\n",
    "absurd numbers": "title: a\nseed: 1e999\ndrop: [100000000000000000000000000]\n",
    "depth": "title: " + "[" * 5000,
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_study_and_a_recipe_that_lie_are_refused(text, tmp_path):
    ran, path = tmp_path / RAN, tmp_path / "file.yaml"
    path.write_text(TEXTS[text].replace("{ran}", str(ran)))
    for read in (read_study, lambda path: read_recipe(str(path))):
        with pytest.raises(ShortstackError):
            read(path)
    assert not ran.exists()
