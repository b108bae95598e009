"""README and docs: their commands and Python run here, their tables are compared with the command line.

Words that name a model (`demo`, `MODEL`, `org/name`) become a tiny checkpoint as deep as the demo's model, or less deep
where a page names no layer; the commands of a page run in order in one folder, which holds what the pages before it make
(scores.json, plan.json, pruned, healed) unless the page makes it itself.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

import doc_tables
import shortstack as ss
import stores
from command import Ended, ended, names
from documents import data_folder
from shortstack.cli.verbs import VERBS
from shortstack.machine.clock import Clock
from shortstack.profiling import Timing
from studies import inline
from zoo import speaking

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
MODEL_WORDS = {"demo", "MODEL", "org/name"}
SHALLOW = {README, DOCS / "shrink.md"}  # name no layer, need no page before: eight do
SHORT_PYDOC = dict(sorted(topics.topics.items())[:12])  # enough for every window a page asks for
RECIPE = "plan: {metric: bi}\nheal: {method: lora, num_train_epochs: 1, max_length: 32, max_samples: 16}\n"
# What a key of JSON under these stands for: names that the command or the model chose.
NAMED = {
    "scores": "METRIC",
    "blocks": "METRIC",
    "order": "METRIC",
    "perplexity": "TEXT",
    "rows[].perplexity": "TEXT",
    "parts": "PART",
    "probes": "PROBE",
    "kinds": "KIND",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line of a page, and the output the page shows under it."""

    words: tuple[str, ...]
    shown: str

    @property
    def verb(self) -> str:
        return next((word for word in self.words[1:] if not word.startswith("-")), "")


def fences(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(page: Path) -> list[Command]:
    found = []
    for body in fences(page, "console", "bash", "sh"):
        prompted = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
        for part in prompted or body.strip().splitlines():
            line, _, shown = part.partition("\n")
            words = shlex.split(line, comments=True)
            if words:
                found.append(Command(tuple(words), shown))
    return found


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and data, and what each verb makes of them."""
    folder = tmp_path_factory.mktemp("line")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    for name, layers in (("model", 30), ("shallow", 8)):
        speaking(folder / name, num_hidden_layers=layers, tie_word_embeddings=True, **small)
    (folder / "my.txt").write_text("The cat sat on the mat, and the dog lay by the door. " * 200, encoding="utf-8")
    rows = [{"instruction": f"Add {n} and one.", "input": "", "output": f"The sum is {n + 1}."} for n in range(40)]
    (folder / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    data_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHORTSTACK_CACHE", str(folder / "cache"))
        patch.setattr("pydoc_data.topics.topics", SHORT_PYDOC)
        source = ss.Checkpoint.open(folder / "model")
        tokens = ss.Tokens.read("pydoc", source.tokenizer(), samples=2, length=32)
        scores = ss.score(source, tokens, metrics=["bi", "ppl"])
        scores.save(folder / "scores.json")
        chosen = ss.select_layers(scores, metric="ppl", drop="25%")
        chosen.save(folder / "plan.json")
        pruned = ss.prune(source, chosen, folder / "pruned")
        ss.heal(pruned, folder / "healed", ss.HealingConfig("pydoc", max_samples=16, num_train_epochs=1))
    stores.write(folder / "runs", documents=20, nasty=False)
    return folder


@pytest.fixture
def place(line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHORTSTACK_CACHE", str(line / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("shortstack.study.workers.local", lambda workers=1: inline())
    monkeypatch.setattr("shortstack.shrinking.stages.Clock", lambda *_, **__: Clock(25.0))  # whatever the minutes
    monkeypatch.setattr("shortstack.healing.budget.FIXED_SECONDS", 0.1)
    monkeypatch.setattr("shortstack.shrinking.measuring.TIMING", Timing((1,), prompt=8, new_tokens=2, repeats=2))
    monkeypatch.setattr("shortstack.shrinking.measuring.ANSWER_TOKENS", 8)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for path in (ROOT / "studies").glob("*.yaml"):
        (tmp_path / "studies" / path.name).write_text(path.read_text(encoding="utf-8").replace("[demo]", "[model]"))
    for name in ("my.txt", "alpaca.jsonl", "mine.yaml", "model", "data"):
        (tmp_path / name).symlink_to(line / name)
    return tmp_path


def provide(line: Path, place: Path, made_here: set[str]) -> None:
    for name in {"scores.json", "plan.json", "pruned", "healed", "runs"} - made_here:
        copy = shutil.copytree if (line / name).is_dir() else shutil.copy
        copy(line / name, place / name)


def labels(text: str) -> set[str]:
    """The column names and first cells of the tables in a command's output: what must not differ from what is shown."""
    found: set[str] = set()
    for row in text.splitlines():
        if row.startswith("┃"):
            found |= {cell.strip() for cell in row.strip("┃").split("┃")}
        elif row.startswith("│"):
            found.add(row.strip("│").split("│")[0].strip())
    return {label for label in found if not re.search(r"\d", label)} - {"", "..."}


def check_shown(command: Command, ran: Ended) -> None:
    said = ran.stdout + ran.stderr
    context = f"{shlex.join(command.words)}\n{said}"
    fails = "Error: " in command.shown
    assert (ran.exit_code != 0) == fails, context
    named = {
        "model" if label in MODEL_WORDS else label for label in labels(command.shown)
    }  # a column's heading may be one
    assert not named - labels(said), f"{named - labels(said)} in {context}"
    if "--json" in command.words:
        assert isinstance(json.loads(ran.stdout), dict), context


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_page_commands_run(page: Path, line: Path, place: Path) -> None:
    if page in SHALLOW:
        (place / "model").unlink()
        (place / "model").symlink_to(line / "shallow")
    words = [word for command in commands(page) for word in command.words]
    provide(line, place, {after for word, after in itertools.pairwise(words) if word == "-o"})
    for command in commands(page):
        if command.words[0] != "shortstack":
            continue  # make is checked below
        extra = "lm_eval" if "--tasks" in command.words else "peft" if command.verb == "shrink" else None
        if extra and importlib.util.find_spec(extra) is None:
            continue
        ran = ended(*("model" if word in MODEL_WORDS else word for word in command.words[1:]))
        check_shown(command, ran)
        if "--json" in command.words and command.verb == page.stem:
            assert documented_keys(page) ^ keys(json.loads(ran.stdout)) == set()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_page_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(page):
        assert command.words[0] in {"shortstack", "make"}, f"no test runs {shlex.join(command.words)}"
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= targets, command


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "python")], ids=page_id)
def test_page_python_runs(page: Path, line: Path, place: Path) -> None:
    provide(line, place, {"pruned", "healed"})
    names: dict[str, Any] = {}
    for body in fences(page, "python"):
        code = re.sub(rf'open\("({"|".join(MODEL_WORDS)})"', 'open("model"', body)
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, page_id(page), "exec"), names)  # noqa: S102  our own pages
        if last and not ast.unparse(last).startswith("print"):
            assert eval(ast.unparse(last), names) is not None  # noqa: S307  the value a reader looks at
    assert any(isinstance(value, ss.Checkpoint) for value in names.values())


def test_readme_has_the_package_example() -> None:
    example = re.findall(r"^>>> (.*?)(?:  # doctest: \+SKIP)?$", ss.__doc__ or "", re.MULTILINE)
    assert "\n".join(example) + "\n" in fences(README, "python")


# Tables of the pages against the command line


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows, without header, of the first table under a heading."""
    section = re.split(rf"^## {re.escape(heading)}$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    rows = [row for row in section.split("\n## ")[0].splitlines() if row.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_tables_are_up_to_date() -> None:
    assert [page.name for page in doc_tables.behind()] == [], "make tables writes them"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_page_options_exist(page: Path) -> None:
    others = r"(pip|accelerate|vllm|lm_eval|llama-server|llama-quantize|text-generation-launcher)"
    text = re.sub(rf"`{others} [^`]*`|^\$ {others} .*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    known = {name for verb in VERBS for name in names(verb)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known | {"--help", "--version", "--install-completion"}


def keys(value: Any, path: str = "") -> set[str]:
    """The dotted paths of a JSON value; the words of NAMED stand for names."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        found = set().union(*(keys(item, f"{path}[]") for item in value))
        return {key for key in found if not any(other.startswith(f"{key}.") for other in found)}  # null in some of them
    if not isinstance(value, dict) or not value:
        return {path}
    if path == "steps":  # of shrink: what other pages document
        return {path}
    found: set[str] = set()
    for key, item in value.items():
        name = NAMED.get(path, key)
        found |= keys(item, f"{path}.{name}" if path else name)
    return found


def documented_keys(page: Path) -> set[str]:
    return {key for row in table(page, "JSON") for key in re.findall(r"`([^`]+)`", row[0])}


def test_verbs_have_pages_and_pages_are_linked() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert set(VERBS) <= pages
    assert pages - {"index"} == set(re.findall(r"\]\(([\w-]+)\.md\)", index))
    assert set(re.findall(r"^\| `([\w-]+)` ", index, re.MULTILINE)) == set(VERBS)


def test_python_page_has_every_public_name() -> None:
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    assert {name for name in ss.__all__ if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=page_id)
def test_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_map_has_a_line_for_each_room() -> None:
    tree = next(body for body in fences(ROOT / "CONTRIBUTING.md", "text") if "src/shortstack/" in body)
    package = ROOT / "src" / "shortstack"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert len(tree.splitlines()) <= 25
    assert set(re.findall(r"^  (\w+/)  ", tree, re.MULTILINE)) == rooms
    assert all("  " in line.strip() for line in tree.splitlines()[1:]), "every line of the map says what is there"
