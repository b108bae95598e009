"""The demo on a tiny model in the real one's place: what it shows, and what is left when it does not reach its end."""

from __future__ import annotations

import json

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.cli.demo import show
from shortstack.errors import OutputError
from shortstack.study import demo as module
from shortstack.study.demo import foresee, run
from shortstack.study.shrink_options import ShrinkOptions
from studies import inline, make_data

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = (
    "plan: {metric: ppl, drop: 2}\nheal: {method: lora, rank: 2, epochs: 1, max_length: 32, batch_size: 4, lr: 0.01}\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where "demo" names a tiny model, which loses one layer and two, and heals in seconds."""
    tiny, opened = make_data(tmp_path), Checkpoint.open
    monkeypatch.setattr(
        Checkpoint, "open", lambda model, **options: opened(tiny / "model" if model == "demo" else model, **options)
    )
    (tiny / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    text, data = str(tiny / "text.txt"), str(tiny / "lines.jsonl")
    quick = {"text": text, "perplexity": text, "data": data, "samples": 4, "length": 16, "probe_items": 2}
    monkeypatch.setattr(module, "OPTIONS", ShrinkOptions(recipe=str(tiny / "recipe.yaml"), **quick))
    monkeypatch.setattr(module, "DROPS", (1, 2))
    return tmp_path


def test_each_model_stands_beside_the_unpruned_one(folder, capsys):
    made = run(folder / "deep" / "out", launcher=inline)
    assert [(row.name, row.layers) for row in made.rows] == [("unpruned", 6), ("minus 1", 5), ("minus 2", 4)]
    for row in made.rows[1:]:
        checkpoint = Checkpoint.open(str(folder / "deep" / "out" / row.name.replace(" ", "-")))
        assert (checkpoint.parameters, checkpoint.weight_bytes) == (row.parameters, row.bytes)
        assert json.loads((checkpoint.directory / "shrink.json").read_text())["verdict"] == row.verdict
    assert json.loads((folder / "deep" / "out" / "demo.json").read_text()) == made.to_dict()
    show(made)
    shown = capsys.readouterr().out
    assert all(f"{row.name}: {row.verdict}" in shown for row in made.rows[1:])
    assert all(f"Prompt: {prompt}" in shown for prompt in made.prompts)


def test_both_cuts_share_the_minutes_and_what_does_not_depend_on_them(folder, monkeypatch):
    told, made = [], module.shrink_each
    monkeypatch.setattr(module, "shrink_each", lambda *of, **how: told.append(of[2].minutes) or made(*of, **how))
    run(folder / "out", minutes=7.0, launcher=inline)
    steps = [
        json.loads((folder / "out" / name / "shrink.json").read_text())["steps"] for name in ("minus-1", "minus-2")
    ]
    assert told == [7.0]
    assert steps[0]["evaluate_base"] == steps[1]["evaluate_base"]
    assert [len(each["prune"]["removed"]) for each in steps] == [1, 2]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["demo.json", "minus-1", "minus-2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_a_demo_that_is_stopped_leaves_nothing(error, folder):
    def stop(_stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
        if "the shortened model: answers" in note:
            raise error

    with pytest.raises(error):
        run(folder / "deep" / "out", launcher=inline, progress=stop)
    assert not (folder / "deep").exists()


def test_an_output_that_is_there_is_left_as_it_was(folder):
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    with pytest.raises(OutputError, match="exists"):
        run(folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["mine"]


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(folder):
    foreseen = foresee(folder / "out", minutes=7.0)
    weights = Checkpoint.open("demo").weight_bytes
    assert foreseen.minutes == 7.0
    assert foreseen.all_seconds > foreseen.after > 0
    assert foreseen.disk_bytes == 2 * 2 * weights, "what was cut and what was healed, of both cuts"
    assert not list(folder.glob("out*"))
    (folder / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        foresee(folder / "out")
