"""Pruning and healing in turns, and answers that the unpruned model gives."""

import json
from dataclasses import replace

import pytest
import torch

import shortstack.healing.teacher_answers
from command import invoke
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.data.sources import parse_samples
from shortstack.decoder.generation import generate
from shortstack.errors import DataError, InputError, OutputError
from shortstack.healing import (
    HealingTask,
    Objective,
    Partial,
    Schedule,
    TrainingData,
    Turns,
    heal,
    heal_in_turns,
    healer,
)
from shortstack.healing import iterative as turning
from shortstack.healing.teacher_answers import Answers, prompt_of
from shortstack.pruning import prune
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
SHORT = HealingTask(
    TrainingData("pydoc", max_length=32, max_samples=32),
    Partial(last=1),
    schedule=Schedule(num_train_epochs=1, learning_rate=1e-2),
)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def test_turns_are_prune_and_heal_one_after_the_other(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    result = heal_in_turns(source, tmp_path / "out", Turns("3", 2, "reverse"), SHORT)
    by_hand = heal(prune(source, plan(8, layers="6-7"), tmp_path / "p1"), tmp_path / "h1", SHORT)
    second = prune(Checkpoint.open(str(by_hand.output)), plan(6, layers="5"), tmp_path / "p2")
    heal(second, tmp_path / "h2", SHORT)
    assert weights(tmp_path / "out") == weights(tmp_path / "h2")
    assert result.output == tmp_path / "out"
    healed = Checkpoint.open(str(tmp_path / "out"))
    assert healed.record["layer_map"] == {str(layer): layer for layer in range(5)}
    verbs, record = [], healed.record
    while record:
        verbs.append(record["verb"])
        record = record["origin"]
    assert verbs == ["heal", "prune", "heal", "prune"]
    assert not (tmp_path / "out.turns").exists()


def test_each_turn_scores_the_model_as_it_is_then(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    scored = []
    original = turning.choose
    monkeypatch.setattr(
        turning, "choose", lambda model, *args, **options: scored.append(model) or original(model, *args, **options)
    )
    heal_in_turns(source, tmp_path / "out", Turns("25%", 1, "bi", samples=4, length=64), SHORT)
    assert [model.anatomy.layers for model in scored] == [8, 7]


def test_finished_turns_are_not_repeated_and_other_requests_refused(tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    turns, healed = Turns("3", 1, "reverse"), []
    original = turning.heal

    def failing(checkpoint, out, *task, **options):
        healed.append(out.name)
        if out.name == "2-healed" and len(healed) == 2:
            raise KeyboardInterrupt
        return original(checkpoint, out, *task, **options)

    monkeypatch.setattr(turning, "heal", failing)
    with pytest.raises(KeyboardInterrupt):
        heal_in_turns(source, tmp_path / "out", turns, SHORT)
    with pytest.raises(OutputError, match="turn resume on to go on"):
        heal_in_turns(source, tmp_path / "out", turns, SHORT)
    with pytest.raises(InputError, match=r"turns\.step 1"):
        heal_in_turns(source, tmp_path / "out", Turns("3", 2, "reverse"), SHORT, resume=True)
    heal_in_turns(source, tmp_path / "out", turns, SHORT, resume=True)
    assert healed == ["1-healed", "2-healed", "2-healed", "3-healed"]
    heal_in_turns(source, tmp_path / "whole", turns, SHORT)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"objective": Objective("distill"), "teacher": True}, r"objective\.loss sft"),
        ({"data": TrainingData("pydoc", max_length=24, max_samples=32)}, r"data\.max_length 32"),
        ({"data": TrainingData("copying", max_length=32, max_samples=32)}, r"data\.data pydoc|data\.sha256"),
        ({"text": "copying"}, r"turns\.text pydoc|text\."),
        ({"length": 32}, r"turns\.length 24|text\."),
    ],
    ids=str,
)
def test_turns_go_on_only_with_all_that_they_began_with(changed, named, tmp_path, monkeypatch):
    source = Checkpoint.open(speaking(tmp_path / "source"))
    calibrating = {"text": "pydoc", "samples": 4, "length": 24}

    def failing(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(turning, "heal", failing)
    with pytest.raises(KeyboardInterrupt):
        heal_in_turns(source, tmp_path / "out", Turns("2", 1, "bi", **calibrating), SHORT)
    own = {name: changed[name] for name in calibrating.keys() & changed.keys()}
    rest = {name: value for name, value in changed.items() if name not in own}
    if rest.pop("teacher", None):
        rest["teacher"] = source
    with pytest.raises(InputError, match=named):
        heal_in_turns(
            source, tmp_path / "out", Turns("2", 1, "bi", **{**calibrating, **own}), replace(SHORT, **rest), resume=True
        )


def test_an_edited_model_does_not_go_on(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "source")
    monkeypatch.setattr(healer.HealingRun, "train", lambda *_args, **_options: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception):
        heal(Checkpoint.open(folder), tmp_path / "out", SHORT)
    (tmp_path / "out.training" / "checkpoint-1").mkdir()
    for name, field, value in (
        ("config.json", "rope_theta", 5e5),
        ("tokenizer_config.json", "model_max_length", 7),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(before), field: value}))
        with pytest.raises(InputError, match=r"resume: expected model\.(config|beside)"):
            heal(Checkpoint.open(folder), tmp_path / "out", SHORT, resume=True)
        (folder / name).write_text(before)
    other = "float32" if json.loads((tmp_path / "out.training/run.json").read_text())["dtype"] == "bfloat16" else "bf16"
    monkeypatch.setattr(healer, "fast_bfloat16", lambda _device: other == "bf16")
    with pytest.raises(InputError, match="resume: expected dtype"):
        heal(Checkpoint.open(folder), tmp_path / "out", SHORT, resume=True)


@pytest.mark.parametrize("wrong", [{"step": 0}, {"metric": "nothing"}, {"metric": "repaired-window"}])
def test_turns_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        Turns(**{"drop": "2", "step": 1, **wrong})


def test_no_more_layers_go_in_a_turn_than_in_all():
    assert Turns("25%", 2).sizes(8) == [2]
    with pytest.raises(InputError, match="step: expected 1 to 2 layers at a time, found 3"):
        Turns("25%", 3).sizes(8)


EXAMPLES = [
    Example((5, 9, 30, 31, 40), (False, False, True, True, True)),
    Example(tuple(range(3, 15)), (True,) * 12),
    Example((7, 8, 9, 10), (False, False, False, True)),
    Example(tuple(range(20, 35)), (False,) * 14 + (True,)),
]


def test_the_teachers_answers_are_sampled_from_it_and_kept(tmp_path, monkeypatch):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    answers = Answers(teacher, 14, seed=3)
    found = answers.to(EXAMPLES)
    prompts = [prompt_of(example) for example in EXAMPLES]
    assert [len(prompt) for prompt in prompts] == [2, 3, 3, 14]
    assert len(found) == 3, "the last prompt leaves no room"
    for example, prompt in zip(found, prompts, strict=False):
        assert example.ids[: len(prompt)] == prompt
        assert example.learn == (False,) * len(prompt) + (True,) * (len(example.ids) - len(prompt))
        ended = teacher.model(dtype=torch.float32).generation_config.eos_token_id
        assert len(example.ids) == 14 or example.ids[-1] == ended
        assert ended not in example.ids[len(prompt) : -1]
    monkeypatch.setattr(shortstack.healing.teacher_answers, "generate", lambda *_, **__: pytest.fail("asked again"))
    assert answers.to(EXAMPLES) == found


def test_answers_are_kept_as_they_are_written(tmp_path, monkeypatch):
    """The third part is lost; the first two are not asked for again."""
    teacher, module, asked = Checkpoint.open(speaking(tmp_path / "source")), shortstack.healing.teacher_answers, []
    monkeypatch.setattr(module, "KEPT", 4)

    def killed(model, prompts, *rest, **how):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return generate(model, prompts, *rest, **how)

    monkeypatch.setattr(module, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        Answers(teacher, 14).to(EXAMPLES * 4)
    found = Answers(teacher, 14).to(EXAMPLES * 4)
    assert asked == [4, 4, 4, 4]
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path / "another"))
    assert Answers(teacher, 14).to(EXAMPLES * 4) == found


def test_an_answer_without_words_is_left_out(tmp_path, monkeypatch):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    end, blank, word = 2, *(teacher.tokenizer()(text).input_ids[0] for text in (" ", "w"))
    given = iter([[end], [word, end], [blank, end], [word]])
    module = shortstack.healing.teacher_answers
    monkeypatch.setattr(module, "generate", lambda _model, prompts, *_, **__: [next(given) for _ in prompts])
    found = Answers(teacher, 20).to(EXAMPLES)
    prompts = [prompt_of(example) for example in EXAMPLES]
    assert [example.ids for example in found] == [(*prompts[1], word, end), (*prompts[3], word)]


def test_answers_in_a_batch_are_likely_ones_of_each_prompt_alone(tmp_path):
    """Greedy would be equal; sampled ones are at least far likelier to the teacher than to a model of other weights."""
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    other = Checkpoint.open(speaking(tmp_path / "other", seed=9))
    found = Answers(teacher, 14).to(EXAMPLES * 20)

    def likelihood(checkpoint):
        model, total = checkpoint.model(dtype=torch.float32), 0.0
        with torch.no_grad():
            for example in found:
                log_p = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0].log_softmax(-1)
                first = example.learn.index(True)
                total += sum(float(log_p[place - 1, example.ids[place]]) for place in range(first, len(example.ids)))
        return total

    assert likelihood(teacher) > likelihood(other) + 20


def test_a_healed_model_can_learn_from_answers(tmp_path):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    pruned = prune(teacher, plan(8, layers="3"), tmp_path / "pruned")
    result = heal(
        pruned, tmp_path / "healed", replace(SHORT, data=replace(SHORT.data, self_generate=True), teacher=teacher)
    )
    record = json.loads((tmp_path / "healed" / "shortstack.json").read_text())["healing"]
    assert record["data"]["self_generate"] is True
    assert record["teacher"] == teacher.identity
    assert result.history.steps > 0


def test_prompts_without_room_for_an_answer_are_an_error(tmp_path):
    teacher = Checkpoint.open(speaking(tmp_path / "source"))
    with pytest.raises(DataError, match="max_length"):
        Answers(teacher, 3).to(EXAMPLES[2:])


def test_a_loggers_files_outlive_each_turn(tmp_path):
    """tensorboard's own reader finds the held-out losses that the result tells."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    source = Checkpoint.open(speaking(tmp_path / "source"))
    result = heal_in_turns(source, tmp_path / "out", Turns("2", 1, "reverse"), replace(SHORT, loggers=["tensorboard"]))
    assert sorted(path.name for path in (tmp_path / "out.logs").iterdir()) == ["1-healed", "2-healed"]
    found = events.EventAccumulator(str(tmp_path / "out.logs" / "2-healed")).Reload().Scalars("eval/loss")
    assert [(event.step, pytest.approx(event.value, abs=1e-6)) for event in found] == list(result.history.held_out)


def test_a_dry_run_of_turns_says_how_many_there_are(tmp_path):
    speaking(tmp_path / "source")
    words = ["heal", str(tmp_path / "source"), "--drop", "3", "--step", "2", "--metric", "reverse", "--data", "pydoc"]
    words += ["--max-length", "32", "--max-samples", "16", "--dry-run", "--json", "-o", str(tmp_path / "out")]
    result = invoke(*words)
    assert json.loads(result.stdout)["turns"] == [2, 1]


def test_the_layers_that_went_in_all_turns_are_said_as_the_first_model_numbers_them(tmp_path):
    speaking(tmp_path / "source")
    words = ["heal", str(tmp_path / "source"), "--drop", "3", "--step", "2", "--metric", "reverse", "--data", "pydoc"]
    words += [
        "--max-length",
        "32",
        "--max-samples",
        "16",
        "--last",
        "1",
        "--num-train-epochs",
        "1",
        "-o",
        str(tmp_path / "out"),
    ]
    result = invoke(*words)
    assert "Layers 5-7 went in all. The table is of the last turn." in result.stdout


def test_what_a_recipe_does_not_do_here_is_said(tmp_path):
    speaking(tmp_path / "source", tie_word_embeddings=True)
    words = ["heal", str(tmp_path / "source"), "--recipe", "paper-last3", "--data", "pydoc", "--held-out", "2"]
    words += ["--max-length", "32", "--max-samples", "16", "--dry-run", "-o", str(tmp_path / "out")]
    result = invoke(*words)
    assert "is not cut, and heal only heals" in " ".join(result.stderr.split())
    assert "the head is the embedding matrix and stays frozen" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("said", "windows"), [("all", None), ("7", 7), (7, 7)])
def test_turns_look_at_so_many_windows_or_at_all(said, windows):
    turns = Turns.of_options({"step": 1, "drop": "2", "samples": said, "metric": None, "text": "pydoc"})
    assert turns == Turns("2", 1, samples=said, text="pydoc")
    assert parse_samples(turns.calibration.samples) == windows


@pytest.mark.parametrize("said", ["0", "some"])
def test_other_numbers_of_windows_are_refused(said):
    with pytest.raises(InputError, match=r"a number of windows, or all"):
        Turns("2", 1, samples=said)
