"""Healing within a time limit: amounts, refusals, and going on after an interruption."""

import json
from dataclasses import replace

import pytest

from learning import EXAMPLES, SHORT, weights
from shortstack.data import Text
from shortstack.errors import InputError, OutputError, TrainingError
from shortstack.healing import Full, Partial, budget, heal, healer, training
from shortstack.healing.budget import Budget
from shortstack.healing.samples import fitting_text
from shortstack.machine.clock import Clock

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = replace(SHORT, max_samples=None, method=Partial(train_last=1), per_device_train_batch_size=4)
BUDGET = Budget(speed=100.0, passes=1.0, batch=4, length=32, written=0, nbytes=0)


class Ticking:
    """Hands of a clock that move by a second whenever they are looked at; by `slower` from some time on."""

    def __init__(self, slower=1.0, since=1e9):
        self.at, self.slower, self.since = 0.0, slower, since

    def __call__(self):
        self.at += 1.0 if self.at < self.since else self.slower
        return self.at


def test_heal_ends_in_time_also_beside_work_that_begins_in_the_middle(source, tmp_path):
    hands = Ticking(slower=4.0, since=200)
    result = heal(source, tmp_path / "out", CONFIG, clock=Clock(400, now=hands), speed=32.0)
    assert hands.at < 1.1 * 400
    assert result.history.steps > 0
    assert result.samples * 32 <= 0.25 * 400 * 32
    record = json.loads((tmp_path / "out" / "shortstack.json").read_text())["healing"]
    assert record["samples"] == result.samples
    assert weights(tmp_path / "out") != weights(source.directory)


def test_too_few_minutes_are_refused_before_any_work_and_those_that_are_named_suffice(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(healer, "read_examples", lambda *_: pytest.fail("data were read"))
        with pytest.raises(InputError) as refused:
            heal(source, tmp_path / "out", replace(CONFIG, minutes=0.05), speed=1e3)
    assert refused.value.option == "minutes"
    assert not list(tmp_path.glob("out*"))
    minutes = float(refused.value.message.rpartition(" ")[2])
    clock = Clock(60 * minutes, now=Ticking())
    monkeypatch.setattr(budget, "FIXED_SECONDS", 0.0)
    assert heal(source, tmp_path / "out", CONFIG, clock=clock, speed=1e3).history.steps > 0


def test_run_that_took_no_step_is_an_error_without_output(source, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Deadline, "fits", lambda *_: False)
    with pytest.raises(TrainingError):
        heal(source, tmp_path / "out", CONFIG, clock=Clock(400, now=Ticking()), speed=1e3)
    assert not list(tmp_path.glob("out*"))


def test_a_tenth_of_the_samples_at_most_is_held_out(source, tmp_path):
    config = replace(CONFIG, held_out=2000)
    result = heal(source, tmp_path / "out", config, clock=Clock(400, now=Ticking()), speed=32.0)
    assert result.history.steps > 0
    assert config.count_held_out(EXAMPLES[:1] * result.samples, timed=True) == result.samples // 10


@pytest.mark.parametrize(
    ("passes", "seconds", "samples"), [(1.0, 80, 62), (2.0, 80, 31), (0.5, 80, 62), (1.0, 1e9, 200), (1.0, 1e-9, 4)]
)
def test_samples_fit_a_quarter_of_the_time(passes, seconds, samples, source):
    made, clock = replace(BUDGET, passes=passes), Clock(seconds, now=lambda: 0.0)
    text = fitting_text(Text("copying", 200, 32), source.tokenizer(), 0, made, clock, None)
    assert text == Text("copying", samples, 32)


@pytest.mark.parametrize(("windows", "of_each"), [(100, (100, 50, 50)), (30, (30, 85, 85)), (1, (1, 99, 99))], ids=str)
def test_where_the_model_writes_little_the_other_sources_count_for_more(windows, of_each, source, tmp_path):
    written = tmp_path / "own.jsonl"

    def write(text, _windows, deadline):
        assert deadline.left <= 0.25 * 1e9
        return text.replacing({"self": str(written)})

    sources, room = {"self": 1, "copying": 0.5, "recall": 0.5}, 31
    written.write_text("".join(f"{json.dumps({'texts': [[5] * room], 'seconds': 1})}\n" for _ in range(windows)))
    clock = Clock(1e9, now=lambda: 0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shortstack.healing.samples.is_own", lambda name: name == str(written))
        text = fitting_text(Text(sources, 200, 32), source.tokenizer(), 0, BUDGET, clock, write)
    weights = {source.name: source.weight for source in text.sources}
    whole = sum(weights.values())
    shares = [200 * weights[name] / whole for name in (str(written), "copying", "recall")]
    assert shares == pytest.approx(of_each, abs=5)


@pytest.fixture
def saving_each_step(monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1e9)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)
    monkeypatch.setattr("shortstack.healing.resuming.NOTE_SECONDS", 0.0)


def stopping_at(step, kind=KeyboardInterrupt):
    def progress(stage, _done, _total, note=""):
        if stage == "healing" and f"step {step}," in f"{note},":
            raise kind

    return progress


@pytest.mark.usefixtures("saving_each_step")
def test_interrupted_run_goes_on_in_what_is_left_of_its_time(source, tmp_path, monkeypatch, capsys):
    hands = Ticking()
    monkeypatch.setattr(healer, "Clock", lambda seconds, **how: Clock(seconds, **{"now": hands, **how}))
    config = replace(CONFIG, minutes=400 / 60)
    with pytest.raises(KeyboardInterrupt):
        heal(source, tmp_path / "out", config, speed=32.0, progress=stopping_at(20))
    used, hands.at = hands.at, 10_000.0
    result = heal(source, tmp_path / "out", config, speed=32.0)
    assert "at step 19" in capsys.readouterr().err
    assert 300 < used + hands.at - 10_000 < 1.1 * 400
    assert result.history.steps > 20
    assert not (tmp_path / "out.training").exists()


STEPS = replace(CONFIG, max_samples=48, num_train_epochs=2)


def interrupted(source, out, config=STEPS):
    def progress(stage, done, _total, note=""):
        if stage == "healing" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(source, out, config, progress=progress)


@pytest.mark.usefixtures("saving_each_step")
def test_interrupted_run_ends_in_the_same_weights(source, tmp_path, capsys):
    interrupted(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    seen = []
    heal(source, tmp_path / "out", STEPS, progress=lambda stage, done, *_, note="": seen.append((stage, done)))
    assert next(done for stage, done in seen if stage == "healing") == 7
    assert capsys.readouterr().err.count("continuing the unfinished run at step 6") == 1
    heal(source, tmp_path / "whole", STEPS)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.usefixtures("saving_each_step")
@pytest.mark.parametrize("changed", ["config", "model", "data", "error"])
def test_run_begins_anew_with_other_options_another_model_or_data_and_after_an_error(
    changed, source, tmp_path, monkeypatch, capsys
):
    text = tmp_path / "text.txt"
    text.write_text("the walk visits each layer of the model " * 200)
    config, model = replace(STEPS, data=str(text)), source
    interrupted(source, tmp_path / "out", config)
    if changed == "config":
        config = replace(config, learning_rate=2e-2)
    elif changed == "model":
        model = heal(source, tmp_path / "other", replace(SHORT, max_steps=1)).output
    elif changed == "data":
        text.write_text("the walk visits no layer of the model " * 200)
    else:
        monkeypatch.setattr(training, "load_file", lambda _path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            heal(source, tmp_path / "out", config)
        monkeypatch.undo()
    steps = []
    progress = lambda stage, done, *_, note="": steps.append(done) if stage == "healing" else None  # noqa: E731
    heal(model, tmp_path / "out", config, progress=progress)
    assert steps[0] == 1
    said = "after an error: the next run begins anew" if changed == "error" else "beginning anew: "
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize("kind", ["training", "rounds"])
def test_folder_of_others_is_refused_and_stays(kind, source, tmp_path):
    notes = tmp_path / f"out.{kind}" / "run.json"
    notes.parent.mkdir()
    notes.write_text('{"mine": true}')
    run = heal if kind == "training" else healer_rounds
    with pytest.raises(OutputError):
        run(source, tmp_path / "out", SHORT)
    assert notes.read_text() == '{"mine": true}'


def healer_rounds(source, out, config):
    from shortstack.healing import prune_iteratively

    return prune_iteratively(source, out, config, drop=2, step=1, metric="reverse")


def test_training_whole_models_prepares_no_less(source, tmp_path):
    result = heal(source, tmp_path / "out", replace(CONFIG, method=Full()), clock=Clock(400, now=Ticking()), speed=32.0)
    assert result.samples * 32 <= 0.25 * 400 * 32
