"""The dry run of a study: its steps and bytes are those of the study, and it refuses what the study refuses."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from command import invoke
from shortstack.checkpoint import Checkpoint
from shortstack.errors import DataError, InputError
from shortstack.study import run_study
from shortstack.study.step_counts import _between_turns, step_counts
from studies import SHORT, STUDY, found, inline, write_study

pytestmark = pytest.mark.usefixtures("own_cache", "named_data")
STUDIES = Path(__file__).parents[2] / "studies"


def test_steps_and_bytes_are_those_of_the_study(tmp_path):
    """Where no two plans are equal; where some are, there are fewer."""
    said = step_counts(write_study(tmp_path), tmp_path / "runs")
    told = json.loads(invoke("study", tmp_path / "study.yaml", "-o", tmp_path / "runs", "--dry-run", "--json").stdout)
    assert told == {**asdict(said), "unknown": [], "lacking": []}
    assert not (tmp_path / "runs").exists()
    run_study(write_study(tmp_path), tmp_path / "runs", launcher=inline, keep="all")
    ran = [row[1] for row in found(tmp_path / "runs")["steps"].values()]
    assert said.trials == 4
    assert said.steps == {kind: ran.count(kind) for kind in set(ran)}
    assert said.asked == {"score": 2, "plan": 4, "prune": 4, "heal": 2, "evaluate": 4 + 4 + 2}
    folders = [path.parent for path in (tmp_path / "runs" / "artefacts").glob("*/config.json")]
    real = sum(Checkpoint.open(folder).weight_bytes for folder in folders)
    assert said.disk_bytes == real
    assert said.least_disk_bytes == 2 * real // len(folders)  # all cuts are of one size


def test_what_lies_on_the_disk_until_a_healing_in_turns_ends_counts():
    """Five layers go in three turns, each of which leaves what was cut and what healed."""
    model, turns = SimpleNamespace(anatomy=SimpleNamespace(layers=8), weight_bytes=1000), SimpleNamespace(step=2)
    turns.amount = lambda layers: layers - 3
    assert _between_turns(model, turns) == 3 * 2 * 1000
    assert _between_turns(None, turns) == 0, "which is not here"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("$TINY/lines.jsonl", "$TINY/lost.jsonl", DataError),
        ("$TINY/model", "$TINY/lost", InputError),
        ("num_samples: 2", "num_samples: 2, tasks: [piqa], data_dir: $TINY/nowhere", InputError),
    ],
)
def test_what_the_study_refuses_is_refused(old, new, error, tmp_path):
    assert old in STUDY
    with pytest.raises(error):
        step_counts(write_study(tmp_path, STUDY.replace(old, new)), tmp_path / "runs")


def test_a_folder_of_another_study_or_of_a_model_is_refused(tmp_path, study_data):
    run_study(write_study(tmp_path, SHORT), tmp_path / "runs", launcher=inline)
    other = write_study(tmp_path, SHORT.replace("num_samples: 2", "num_samples: 3"))
    with pytest.raises(InputError, match="num_samples"):
        step_counts(other, tmp_path / "runs")
    with pytest.raises(InputError, match="a folder outside a model's"):
        step_counts(write_study(tmp_path, SHORT), study_data / "model" / "runs")


def test_a_model_that_would_be_fetched_is_said_to_be_unknown(tmp_path):
    said = step_counts(
        write_study(tmp_path, STUDY.replace("models: [$TINY/model]", "models: [$TINY/model, org/nowhere]"))
    )
    assert said.trials == 8
    assert said.disk_bytes is None
    assert said.unknown == ("model org/nowhere: no copy on this machine",)


def test_the_whole_grid_of_the_paper_shares_most_of_its_steps(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setattr("shortstack.study.step_counts.text_digest", str)
    monkeypatch.setattr("shortstack.study.step_counts.check_inputs", lambda *_: None)  # the data is somewhere else
    said = step_counts(STUDIES / "paper.yaml")
    assert said.trials == 161
    assert sum(said.steps.values()) < 0.7 * sum(said.asked.values())
    assert said.steps["score"] < 20 < said.asked["score"]
    assert any("meta-llama" in reason for reason in said.unknown)
