"""A dry run of healing says what healing then does, and its memory is counted apart."""

from dataclasses import replace

import pytest

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text, read_examples
from shortstack.decoder.wrapping import LOGIT_BYTES
from shortstack.errors import InputError, OutputError
from shortstack.healing import HealingTask, IterativeSchedule, Lora, Objective, Partial, Schedule, TrainingData, heal
from shortstack.healing.healer import HealingRun
from shortstack.healing.preview import ACTIVATION_BYTES, LOGIT_COPIES, STATE_BYTES, preview
from shortstack.pruning import prune

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = HealingTask(
    TrainingData("pydoc", max_length=32, max_samples=40),
    schedule=Schedule(num_train_epochs=1, per_device_train_batch_size=8),
)


@pytest.mark.parametrize("method", [Partial(train_last=2), Lora()], ids=lambda method: method.name)
def test_a_dry_run_says_what_a_run_then_does(method, source, tmp_path):
    if isinstance(method, Lora):
        pytest.importorskip("peft")
    teacher, source = source, prune(source, plan(8, layers="3"), tmp_path / "pruned")
    task = replace(TASK, method=method, objective=Objective("distill", top_k=8), teacher=teacher)
    found = preview(source, tmp_path / "out", task)
    assert not list((tmp_path / "cache").rglob("*.states"))
    result = heal(source, tmp_path / "out", task)
    assert found.trainable_parameters == result.trainable_parameters
    assert found.requirements.disk_bytes == Checkpoint.open(result.output).weight_bytes
    assert found.steps == result.history.steps
    examples = read_examples(Text("pydoc", None, 32), source.tokenizer())[:40]
    assert (found.samples, found.held_out) == (40, 2)
    assert found.tokens == sum(len(example.ids) for example in examples[2:])
    assert found.cache_bytes == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.states")) > 0
    assert preview(source, tmp_path / "other", task).cache_bytes == 0
    assert not (tmp_path / "other.training").exists()


def test_memory_is_weights_state_activations_and_logits(source, tmp_path):
    """Counted from the checkpoint's tensors, and not from the model that is asked."""
    schedule = Schedule(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    task = replace(TASK, method=Partial(train_last=2), schedule=schedule)
    found, dtype = preview(source, tmp_path / "out", task), HealingRun(source, task).dtype
    layers = sum(source.sizes.layer_parameters[-2:])
    trained = layers + source.width + source.vocabulary * source.width
    assert found.trainable_parameters == trained
    frozen = source.sizes.other_parameters + layers - trained
    activations = 4 * 32 * source.width * 2 * ACTIVATION_BYTES
    logits = LOGIT_COPIES * LOGIT_BYTES[True]
    expected = frozen * dtype.itemsize + STATE_BYTES * trained + activations + logits
    assert found.requirements.memory_bytes == expected


def test_a_run_that_is_unfinished_is_refused_and_stays(source, tmp_path):
    (tmp_path / "out.training" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "out.training" / "run.json").write_text('{"method": "partial"}')
    with pytest.raises(OutputError, match="no unfinished run"):
        preview(source, tmp_path / "out", TASK)
    preview(source, tmp_path / "out", TASK, resume=False)
    assert (tmp_path / "out.training" / "checkpoint-1").is_dir()


def test_turns_by_the_clock_are_refused(source, tmp_path):
    task = replace(TASK, schedule=Schedule(minutes=5.0))
    with pytest.raises(InputError, match="minutes: expected a single healing"):
        preview(source, tmp_path / "out", task, IterativeSchedule(drop="2", step=1))


def test_a_teacher_that_would_write_writes_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shortstack.decoder.own_text.Writer.write", lambda *_: pytest.fail("the model writes"))
    data = TrainingData("self", max_length=32, max_samples=40)
    found = preview(source, tmp_path / "out", replace(TASK, data=data, teacher=source))
    assert (found.samples, found.tokens) == (40, 38 * 32), "each as long as it may be"
