"""The dry run: steps as many as there are, costs that follow tokens and layers, and what is unknown said to be so."""

from pathlib import Path

import pytest

from shortstack.estimating import estimate
from shortstack.examples import read_examples
from shortstack.planning import parse_drop
from shortstack.running import run_study
from shortstack.study import parse_study, read_study
from studies import STUDY, found, inline, make_data, write_study
from zoo import tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY", str(make_data(tmp_path)))
    return tmp_path


def estimated(text=STUDY):
    return estimate(parse_study(text, where="study.yaml"))


def test_the_steps_that_are_foreseen_are_those_that_run(tiny):
    """Where no two plans are equal; where some are, there are fewer."""
    foreseen = estimated()
    run_study(write_study(tiny), tiny / "runs", launcher=inline)
    ran = [row[1] for row in found(tiny / "runs")["steps"].values()]
    assert foreseen.trials == 4
    assert foreseen.steps == {kind: ran.count(kind) for kind in set(ran)}
    assert foreseen.asked == {"score": 2, "plan": 4, "prune": 4, "heal": 2, "evaluate": 4 + 4 + 2}
    assert foreseen.unknown == ()


def test_disk_is_that_of_the_checkpoints(tiny):
    run_study(write_study(tiny), tiny / "runs", launcher=inline, keep="all")
    from shortstack.checkpoint import Checkpoint

    folders = [path.parent for path in (tiny / "runs" / "artefacts").glob("*/config.json")]
    real = sum(Checkpoint.open(folder).weight_bytes for folder in folders)
    foreseen = estimated()
    assert foreseen.disk_bytes == real
    assert foreseen.least_disk_bytes == 2 * real // 4  # all cuts are of one size


def test_time_is_that_of_layer_forwards_and_heads(tiny, monkeypatch):
    """A layer takes 1 s a token here and the head 100 s: each model's six layers are counted by hand."""
    monkeypatch.setattr("shortstack.estimating.layer_seconds", lambda decoder: 1.0)
    monkeypatch.setattr("shortstack.estimating.head_seconds", lambda decoder: 100.0)
    text = STUDY.replace("metrics: [reverse, ppl]", "metrics: [ppl]").replace("epochs: 1", "epochs: 3")
    foreseen = estimated(text)
    assert foreseen.seconds["score"] == 2 * 16 * (1 + 2 + 3 + 4 + 5 + 6 + 7 * 100)
    assert foreseen.seconds["evaluate"] == 3 * 2 * 16 * (6 + 100)
    examples = read_examples(str(tiny / "lines.jsonl"), tokenizer(), max_length=32)[1:]  # one is held out
    tokens = sum(len(example.ids) for example in examples)
    assert foreseen.seconds["heal"] == tokens * (3 + 3 * 3 * (1 + 100))  # three frozen layers, one that trains


def test_what_is_not_here_is_unknown_and_still_counted(tiny):
    text = STUDY.replace("[$TINY/model]", "[org/nowhere, $TINY/model]").replace(
        "perplexity: [$TINY/text.txt]", "perplexity: [lost.txt]"
    )
    foreseen = estimated(text)
    assert foreseen.trials == 8
    assert foreseen.steps["prune"] == 4
    assert foreseen.seconds["prune"] is None
    assert foreseen.disk_bytes is None
    assert [reason.split(":")[0] for reason in foreseen.unknown] == ["model org/nowhere", "text lost.txt"]


def test_a_hub_dataset_has_no_known_length(tiny):
    foreseen = estimated(STUDY.replace("data: $TINY/lines.jsonl, ", "data: org/lines, "))
    assert foreseen.seconds["heal"] is None
    assert foreseen.seconds["prune"] is not None
    assert foreseen.unknown == ("text org/lines: its length is known to the hub",)


# The studies that come with the project


def test_the_papers_grid_has_its_models_metrics_ratios_methods_and_schedules(monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    study = read_study(STUDIES / "paper.yaml")
    trials = [trial.settings() for trial in study.trials]
    metrics = {"reverse", "random", "ppl", "magnitude-l1", "magnitude-l2", "bi", "taylor"}
    models = {trial["model"] for trial in trials}
    assert len(models) == 4
    for model in models:
        drops = {"6", "12"} if "gemma" in model else {"25%", "50%"}
        grid = {
            (trial["metric"], trial["drop"])
            for trial in trials
            if trial["model"] == model and trial["strategy"] == "one-shot" and trial["heal"]["name"] == "paper-lora"
        }
        assert {(metric, drop) for metric in metrics for drop in drops} <= grid
        if "gemma" in model:
            assert {parse_drop(drop, 26) for drop in drops} == {6, 12}
    llama = [trial for trial in trials if "Llama" in trial["model"]]
    tail = {trial["heal"]["name"] for trial in llama if trial["metric"] == "reverse" and trial["drop"] == "25%"}
    assert {
        "paper-lora",
        "paper-qlora",
        "paper-head",
        "paper-last1",
        "paper-last2",
        "paper-last3",
        "paper-dolly",
    } <= tail
    assert {"last5", "last8", "full", "lora-2e-4", "mmlu"} <= tail
    assert {"step 1", "step 4", "step 6", "step 8"} <= {trial["strategy"] for trial in llama}
    assert {1, 5, 10, 30, 50} <= {trial["calibration"]["samples"] for trial in llama if trial["metric"] == "bi"}
    assert {f"{percent}%" for percent in range(5, 80, 5)} <= {trial["drop"] for trial in llama}
    foreseen = estimate(study)
    assert foreseen.trials == len(trials) == 161
    assert sum(foreseen.steps.values()) < 0.7 * sum(foreseen.asked.values())
    assert foreseen.steps["score"] < 20 < foreseen.asked["score"]
    assert foreseen.disk_bytes is None
    assert any("meta-llama" in reason for reason in foreseen.unknown)


@pytest.mark.parametrize("name", ["smoke", "smollm2"])
def test_the_studies_of_smollm2_can_be_read(name):
    study = read_study(STUDIES / f"{name}.yaml")
    assert {trial.model for trial in study.trials} == {"demo"}
    assert len(study.trials) == {"smoke": 4, "smollm2": 185}[name]
