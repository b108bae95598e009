"""Every verb over the corpus of lies: refused in a sentence, or done; nothing outside is read, written, sent or run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lies import CANARY, CHECKPOINTS, GGUFS, MARKUP, OUTSIDE, RAN, RECIPE, STUDY, TEXTS

from command import ended
from gguf_models import llama
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ShortstackError
from shortstack.exporting.hub import prepared
from shortstack.machine.files import file_digest, remove
from shortstack.pruning import prune
from shortstack.report import Report
from shortstack.study import run_study
from studies import inline
from zoo import speaking

SMALL = "--text text.txt --samples 2 --length 16"
SHORT = "--train-last 1 --max-samples 24 --max-length 16 --num-train-epochs 1"
VERBS = {
    "score": f"score m --metric bi {SMALL} -o out.json",
    "plan": "plan m --metric reverse --drop 2 -o out.json",
    "prune": "prune m --layers 3 -o out",
    "heal": f"heal m --data chats.jsonl {SHORT} -o out",
    "evaluate": "evaluate m --perplexity text.txt --samples 2 --length 16 --no-collapse",
    "profile": "profile m --no-speed",
    "verify": "verify m",
    "verify against": "verify source --against m",
    "export": "export m --gguf out.gguf --ollama --converter converter",
    "study": "study study.yaml -o out --dry-run",
    "shrink": "shrink m --drop 25% --dry-run -o out",
}
CONVERTER = f"""#!{sys.executable} -S
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
told = [path.name for path in folder.glob("*.json") if '"auto_map"' in path.read_text(errors="replace")]
if told or [*folder.glob("*.py")]:
    (folder.parent / "ran").touch()
    pathlib.Path("../ran").touch()
sys.exit(1)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of everything one that does not lie; beside it what nobody may read."""
    top = tmp_path_factory.mktemp("whole")
    place = top / "place"
    place.mkdir()
    prune(Checkpoint.open(speaking(place / "source")), plan(8, layers="3-4"), place / "m")
    (place / "text.txt").write_text("the walk visits every layer once and in order " * 40)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (place / "chats.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(30)))
    (place / "study.yaml").write_text(STUDY)
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "converter").write_text(CONVERTER)
    (place / "converter").chmod(0o755)
    secret = place / OUTSIDE
    shutil.copytree(place / "source", secret)
    (secret / "model.safetensors").rename(secret / "secret.safetensors")
    written = json.dumps({"model_type": "llama", CANARY: 1})
    for name in ("secret.json", "config.4.0.0.json", "tokenizer.4.0.0.json", "secret.jinja"):
        (secret / name).write_text(written)
    llama(secret / "secret.gguf", layers=2)
    (place / "g").mkdir()
    llama(place / "g" / "model.gguf", layers=2)
    return place


def contents(place: Path) -> dict[str, str]:
    """The digest of every file, but for outputs and the cache."""
    files = [
        path for path in place.rglob("*") if path.is_file() and not path.relative_to(place).parts[0].startswith("out")
    ]
    there = [path for path in files if not path.name.endswith(".lock")]
    return {str(path): file_digest(path) for path in [*there, *(place / OUTSIDE).rglob("*")] if path.is_file()}


class Watch:
    """Runs verbs in a folder, and sees that they end in words and leave all else alone."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def runs(self, command: str) -> int:
        """The exit code of a verb."""
        words, before = command.split(), contents(self.place)
        said = ended(*words, "-q")
        code, error = said.exit_code, said.stderr
        what = f"{command}: {error}"
        assert code in (0, 1, 2), what
        found_wrong = words[0] == "verify" and code == 1  # that is its result
        assert ("Error: " in error) == (code != 0) or found_wrong, what
        assert "Traceback" not in error, what
        assert "\x1b" not in error + said.stdout, what
        assert contents(self.place) == before, what
        assert not (self.place / RAN).exists(), what
        self.check_outputs(code, what)
        return code

    def check_outputs(self, code: int, what: str) -> None:
        for out in self.place.glob("out*"):
            assert code == 0, f"{what} leaves {out.name}"
            files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
            assert not [path for path in files if CANARY.encode() in path.read_bytes()], what
            cards = [path.read_text().partition("\n---\n")[2] for path in files if path.name == "README.md"]
            assert not [card for card in cards if "<img" in card or "[a](" in card], what
            remove(out)


@pytest.fixture
def watch(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(shutil.copytree(whole, tmp_path / "place", symlinks=True))
    yield Watch(tmp_path / "place")
    caches = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in caches if CANARY.encode() in path.read_bytes()]


DONE = {  # lies that hurt nobody, since what they say is not believed: verbs go through
    *("code: its own", "code: another's", "code: pickles", "template: reaches out", "template: reads files"),
    *("markup: architecture", "markup: source", "markup: version", "markup: card", "card: metadata that is none"),
    "markup: end of a text",
}

BY_RECORD = ("prune", "verify", "export")  # and card: where these are read
ALWAYS = ("prune", "evaluate", "export")
IN_TURN = [verb for verb in VERBS if verb not in ALWAYS]  # of these, one with each lie: each meets lies of every kind


def verbs_for(lie: str) -> list[str]:
    if lie.startswith(("manifest", "markup", "card")):
        return [*BY_RECORD]
    if "TORTURE_MUTATIONS" in os.environ:  # make torture
        return [*VERBS]
    return [*ALWAYS, IN_TURN[[*CHECKPOINTS].index(lie) % len(IN_TURN)]]


@pytest.mark.parametrize("lie", CHECKPOINTS)
def test_a_checkpoint_that_lies(lie: str, watch: Watch) -> None:
    CHECKPOINTS[lie](watch.place / "m")
    codes = {verb: watch.runs(VERBS[verb]) for verb in verbs_for(lie)}
    if lie.startswith(("manifest", "markup: verb")):  # only read where the record is
        assert codes["verify"] == codes["prune"] == 2, codes
    elif lie not in DONE:
        through = {verb for verb, code in codes.items() if not code} - {"study"}  # whose dry run counts steps here
        reading_no_weights = {"plan", "profile"} if lie == "size: a vocabulary" else set()
        assert through <= reading_no_weights
    else:
        assert not codes["prune"], codes
    try:
        files = prepared(Checkpoint.open("m"), "org/m", licence="mit")
    except ShortstackError:
        return
    for file in files:
        with file.as_file() as content:
            assert CANARY.encode() not in content.read()
    assert lie in DONE


@pytest.mark.parametrize("lie", GGUFS)
def test_a_gguf_file_that_lies(lie: str, watch: Watch) -> None:
    GGUFS[lie](watch.place / "g")
    file = min(str(path.relative_to(watch.place)) for path in (watch.place / "g").glob("*.gguf"))
    codes = [
        watch.runs(command)
        for command in (
            f"profile {file} --no-speed",
            f"prune {file} --layers 1 -o out",
            f"prune {file} --layers 1 -o out.gguf",
            f"shrink {file} --drop 1 --dry-run -o out",
        )
    ]
    if lie.startswith(("count", "length", "a part")):
        assert codes == [2] * len(codes)
    elif lie != "markup: architecture":
        assert not any(codes[:3]), codes


@pytest.mark.parametrize("name", TEXTS)
def test_a_study_and_a_recipe_that_lie(name: str, watch: Watch) -> None:
    text = TEXTS[name].replace("RAN", str(watch.place / RAN))
    for file, kept, command in (
        ("study.yaml", STUDY, VERBS["study"]),
        ("recipe.yaml", RECIPE, "heal m --recipe recipe.yaml --data chats.jsonl --dry-run -o out"),
        ("recipe.yaml", RECIPE, "shrink source --recipe recipe.yaml --dry-run -o out"),
    ):
        lines = [line for line in kept.splitlines(keepends=True) if line.split(":")[0] not in text]
        (watch.place / file).write_text(text + "".join(lines))
        assert watch.runs(command) == 2 or name == "markup: title"


def test_names_are_text_in_a_report(whole: Path, tmp_path: Path) -> None:
    title = MARKUP.replace("\x1b", "") + "{{ 7 * 7 }}"
    study = STUDY.replace("[m]", json.dumps([str(whole / "source")])).replace("text.txt", str(whole / "text.txt"))
    (tmp_path / "study.yaml").write_text(f"title: {json.dumps(title)}\n{study}")
    run_study(tmp_path / "study.yaml", tmp_path / "runs", launcher=inline)
    page = Report.of(tmp_path / "runs").html()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "{{ 7 * 7 }}" in page, "shown as it is, and not computed"
