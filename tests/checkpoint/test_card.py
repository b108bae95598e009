"""The model card: what it tells of where a model comes from, and that its commands make the same model."""

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from command import ended
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.card import CardContent, licence_of, model_card
from shortstack.data import Text
from shortstack.data.text import public_names
from shortstack.healing import HealingConfig, Partial, heal
from shortstack.machine.device import Compute
from shortstack.pruning import prune, verify
from shortstack.repairing.repairer import RepairWalk
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
CARD = "---\nlicense: other\nlicense_name: mine\ntags: [a]\n---\n# About\n"
VERSIONS = {"shortstack": "0"}
PLAN = {"layers": 8, "removed": [3]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with a card of its own, cut and healed."""
    tmp_path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHORTSTACK_CACHE", str(tmp_path / "cache"))
        patch.setattr(RepairWalk, "helps", lambda _walk: True)  # of random weights, too
        return cut_and_healed(tmp_path)


def cut_and_healed(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "MODEL"))
    (source.directory / "README.md").write_text(CARD, encoding="utf-8")
    text, compute = Text("pydoc", samples=12, length=16), Compute(seed=3)
    pruned = prune(source, plan(8, layers="3-4"), tmp_path / "pruned", repair=text, compute=compute)
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"text": f"line {n} " * 9}) + "\n" for n in range(40)))
    config = HealingConfig(
        {"pydoc": 1, str(tmp_path / "chats.jsonl"): 0.5},
        max_length=32,
        max_samples=16,
        method=Partial(train_last=1),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=0.01,
    )
    heal(pruned, tmp_path / "out", config)
    return tmp_path


def head(card):
    return yaml.safe_load(card.split("---")[1])


def test_every_output_has_one_with_the_licence_of_the_source_and_no_path(made):
    for name in ("pruned", "out"):
        card = (made / name / "README.md").read_text(encoding="utf-8")
        front = head(card)
        assert (front["license"], front["license_name"]) == ("other", "mine")
        assert "layer-pruned" in front["tags"]
        assert "base_model" not in front
        assert str(made) not in card
        by = f"shortstack {version('shortstack')}"
        assert f"# {name}\n\nThis model was made shorter by {by}, from a local checkpoint.\n" in card
        assert verify(Checkpoint.open(made / name)).ok
    assert "2 of 8 layers were removed (numbered from 0: 3-4); kept layers were refitted in closed form." in card
    assert "by partial on 16 samples of pydoc, chats.jsonl, to reproduce the text." in card


def test_its_commands_make_the_same_weights(made, monkeypatch):
    wanted = Checkpoint.open(made / "out").weights_sha256
    card = (made / "out" / "README.md").read_text(encoding="utf-8")
    again = made / "again"
    again.mkdir()
    (again / "MODEL").symlink_to(made / "MODEL")
    (again / "chats.jsonl").symlink_to(made / "chats.jsonl")
    monkeypatch.chdir(again)
    monkeypatch.setattr(RepairWalk, "helps", lambda _walk: True)
    commands = [shlex.split(line[2:]) for line in card.splitlines() if line.startswith("$ ")]
    assert [words[:2] for words in commands] == [["shortstack", "prune"], ["shortstack", "heal"]]
    assert "--repair" in commands[0]
    for words in commands:
        run = ended(*words[1:])
        assert run.exit_code == 0, run.stderr
    assert Checkpoint.open(again / "out").weights_sha256 == wanted


NAMES = {  # of data, with the sources that they are, to the names that others may see
    "{0}/chats.jsonl": "chats.jsonl",
    "{0}/notes": "notes",  # a folder
    "{0}/plain": "plain",  # a file without an ending
    "{0}/a,b.txt": "a,b.txt",
    "../{1}/notes": "notes",
    "{1}/plain": "plain",  # as a dataset of the hub is spelt
    "org/set:train": "org/set:train",
    "self": "self",
    "copying": "copying",
}


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A folder of the user's, and the folder above it to work in."""
    folder = tmp_path / "client"
    (folder / "notes").mkdir(parents=True)
    for name in ("chats.jsonl", "plain", "a,b.txt", "notes/one.txt"):
        (folder / name).write_text("".join(json.dumps({"text": f"line {n} " * 9}) + "\n" for n in range(40)))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("data", NAMES)
def test_public_names_have_no_folder(data, private):
    assert public_names(data.format(private, private.name)) == [NAMES[data]]
    assert public_names({data.format(private, private.name): 1, "mix": 0.5}) == [NAMES[data], "mix=0.5"]


@pytest.mark.parametrize("data", ["{0}/chats.jsonl", "{1}/plain"])
def test_heal_names_no_folder_in_card_or_record(data, private, tmp_path):
    pruned = prune(Checkpoint.open(speaking(tmp_path / "MODEL")), plan(8, layers="3-4"), tmp_path / "pruned")
    how = {"max_length": 32, "max_samples": 16, "max_steps": 1, "method": Partial(train_last=1)}
    heal(pruned, tmp_path / "out", HealingConfig(data.format(private, private.name), **how))
    healing = json.loads((tmp_path / "out" / "shortstack.json").read_text())["healing"]
    for written in ((tmp_path / "out" / "README.md").read_text(), json.dumps(healing)):
        assert private.name not in written
        assert Path(data).name in written


def record(source, **more):
    known = {"id": source, "revision": more.pop("revision", "0123abc")}
    return {"verb": "prune", "source": known, "versions": VERSIONS, **more}


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("org/name", "org/name"),
        ("demo", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("models/llama", None),  # a folder, which may be gone by now
        ("/data/org/name", None),
        ("<b>/x", None),
    ],
)
def test_the_base_model_is_one_of_the_hub_or_left_out(source, base):
    revision = None if base is None else "0123abc"
    first = record(source, revision=revision)
    for each in (first, record("somewhere/healed", verb="heal", origin=first)):
        card = model_card('out"\nevil: true', each)
        assert head(card).get("base_model") == base
        assert (f"\n{base}, made shorter by shortstack 0.\n" in card) == bool(base)
        assert "evil" not in head(card)
        assert "<b>" not in card


def test_a_healing_whose_weights_were_not_kept_is_not_said_to_have_trained():
    healing = {"config": {"method": "lora", "loss": "sft", "data": ["pydoc"]}}
    for best, said in (
        (0, "lowered no held-out loss: their weights are as they were"),
        (2, "layers were trained by lora"),
    ):
        step = record("org/name", verb="heal", healing={**healing, "samples": 3, "history": {"best": best}})
        assert said in model_card("out", step)


def test_the_commands_of_several_turns_name_what_each_makes():
    healing = {"config": {"method": "partial", "loss": "sft", "data": ["pydoc"]}}
    step = record("org/name", revision="0123abc", plan=PLAN)
    for verb, more in (("heal", {"healing": {**healing, "samples": 3}}), ("prune", {"plan": PLAN}), ("repair", {})):
        step = record("a folder", verb=verb, origin=step, **more)
    commands = [line for line in model_card("out", step).splitlines() if line.startswith("$ shortstack")]
    words = [shlex.split(command) for command in commands]
    assert [each[3:4] + each[each.index("-o") + 1 :] for each in words] == [
        ["org/name", "pruned-1"],
        ["pruned-1", "healed"],
        ["healed", "pruned-2"],
        ["pruned-2", "out"],
    ]


HARM = "x](https://evil.example) <b>|`**@me** www.evil.example $y$\n```\n# Heading\n\u202e![i](//j)"


def markup(card):
    """Return what a reader of Markdown finds in a card beside text, and the text: kinds of inline tokens, blocks of code."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    inline = [child for token in tokens for child in token.children or ()]
    code = [token.content for token in tokens if token.type in ("fence", "code_block", "html_block")]
    return {child.type for child in inline}, code, "".join(child.content for child in inline if child.type == "text")


def test_what_comes_from_outside_is_no_markup():
    """Of every string that a card shows, whoever wrote it."""
    found = {"value": 0.5, "stderr": 0.1, "n": 24, "metric": HARM}
    evaluated = {"perplexity": {HARM: {"value": 2.0}}, "tasks": {HARM: found}, "probes": {HARM: found}}
    content = CardContent(
        verdict=HARM,
        measured={HARM: evaluated},
        answers=[{HARM: HARM}],
        facts={HARM: {HARM: HARM}},
        why=HARM,
        compared={HARM: 1.0},
    )
    healing = {"config": {"method": HARM, "loss": HARM, "data": [HARM], HARM: HARM}, "samples": 3}
    step = record(HARM, verb="heal", versions={"shortstack": HARM}, healing=healing)
    card = model_card(HARM, step, content)
    text = card.partition("---\n\n")[2]
    kinds, code, shown = markup(text)
    assert kinds <= {"text", "code_inline", "softbreak"}
    assert len(code) == 2
    assert code[1].count("\n") == 1, "the command in one line"
    assert "x](https://evil.example) <b>|`**@me** www.evil.example $y$ ``` # Heading" in shown
    plain = re.sub("(?s)```.*?```\n", "", text)
    assert not re.search(r"(?<!\\)[@$]|https://|www\.|\u202e", plain), "plain to the hub, too"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, {"license": "other", "license_name": "mine"}),
        ("# no metadata", {}),
        ("---\n: [\n---\n", {}),
        ("---\nlicense: [mit]\n---\n", {}),
        (b"\xff\xfe---".decode("latin-1"), {}),
    ],
)
def test_a_licence_is_what_the_card_says_or_nothing(card, licence, tmp_path):
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "nowhere") == {}
