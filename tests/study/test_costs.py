"""The dry run: steps as many as there are, costs that follow tokens and layers, and what is unknown said to be so."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from documents import data_folder
from shortstack.checkpoint import Checkpoint
from shortstack.data import read_examples
from shortstack.data.tokens import encode
from shortstack.decoder import Decoder, likelihoods
from shortstack.evaluation import EvaluationText, Tasks, evaluate
from shortstack.evaluation.degeneration import NEW_TOKENS, PROMPTS
from shortstack.evaluation.probes import probes
from shortstack.evaluation.tasks import amounts
from shortstack.planning.layer_sets import parse_drop
from shortstack.study import read_study, run_study, sizes
from shortstack.study.costs import START_SECONDS, estimate
from shortstack.study.grid import parse_study
from studies import STUDY, found, inline, make_data, write_study
from zoo import tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
STUDIES = Path(__file__).parents[2] / "studies"


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


@pytest.fixture
def paced(tiny, monkeypatch):
    """A layer takes 1 s a token and the head 100 s; a word that eight texts write takes 1,000 s, and 10 s in each layer."""
    monkeypatch.setattr(sizes, "layer_seconds", lambda decoder: 1.0)
    monkeypatch.setattr(sizes, "head_seconds", lambda decoder: 100.0)
    monkeypatch.setattr(sizes, "writing_seconds", lambda decoder: (1000.0, 10.0))
    monkeypatch.setattr(sizes, "_fit_seconds", lambda *_shape: 10.0)
    monkeypatch.setattr(sizes.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(sizes, "COPY_BYTES_PER_S", math.inf)
    monkeypatch.setattr(sizes, "DIGEST_BYTES_PER_S", math.inf)
    return tiny


ONE = STUDY.replace("metrics: [reverse, ppl]", "metrics: [ppl]")
TEXT = "$TINY/text.txt"
WINDOWS = 2 * 16  # tokens of the study's text


def test_time_is_that_of_layer_forwards_and_heads(paced):
    """The model's six layers, and the four of what was cut, are counted by hand."""
    foreseen = estimated(ONE.replace("epochs: 1", "epochs: 3"))
    assert foreseen.seconds["score"] == WINDOWS * (1 + 2 + 3 + 4 + 5 + 6 + 7 * 100)
    assert foreseen.seconds["evaluate"] == WINDOWS * (6 + 100 + 2 * (4 + 100))
    examples = read_examples(str(paced / "lines.jsonl"), tokenizer(), max_length=32)[1:]  # one is held out
    tokens = sum(len(example.ids) for example in examples)
    trained = 3 * 3.7 * (1 + 100)  # three epochs of one layer and the head; three layers are frozen
    assert foreseen.seconds["heal"] == pytest.approx(tokens * (3 + trained))
    taught = estimated(ONE.replace("epochs: 1", "epochs: 3, loss: distill"))
    assert taught.seconds["heal"] == pytest.approx(tokens * (3 + trained + 6 + 100))  # the teacher is the whole model


def test_repairs_are_walks_and_fits(paced):
    """A fit takes 10 s; a repair fits seven layers of ten in 3.3 walks, and six cuts are repaired to choose one.

    Of 6 layers 2 go: blocks of two sizes, so twelve routes, each through three layers and a head with a fourth of the text.
    """
    repaired = estimated(ONE.replace("drop: 2", f"drop: 2\nrepair: {{text: {TEXT}, samples: 8, length: 16}}"))
    assert repaired.seconds["prune"] == pytest.approx(8 * 16 * 3.3 * 6 + 4.2 * 10)
    blocks = estimated(ONE.replace("[ppl]", "[repaired-blocks]"))
    walks, heads = (6 * 3.3 + 1) * 6 + 12 * 3 / 4, 12 / 4
    assert blocks.seconds["plan"] == pytest.approx(WINDOWS * (walks + 100 * heads) + (6 * 4.2 + 6) * 10)
    fewer = estimated(ONE.replace("[ppl]", "[repaired-blocks 1]"))
    assert blocks.seconds["plan"] - fewer.seconds["plan"] == pytest.approx(4 * (WINDOWS * 3.3 * 6 + 4.2 * 10))


def test_every_kind_of_text_has_its_windows(paced):
    one, two = (
        estimated(ONE.replace("calibration: {text: $TINY/text.txt", f"calibration: {{text: '{text}'"))
        for text in ("copying", "copying,recall")
    )
    assert two.seconds["score"] == 2 * one.seconds["score"] > 0


def test_what_the_model_writes_is_written_and_then_walked(paced):
    """Half of ten samples of 32 tokens are its own: five texts take as long as eight, a word of them 1,060 s."""
    asked = ONE.replace("data: $TINY/lines.jsonl", "data: 'self,copying', max_samples: 10, max_length: 32")
    texts = 1 * 6 * 5 + 32 * (1000 + 6 * 10)
    healed = 10 * 32 * (3 + 3.7 * (1 + 100))
    assert estimated(asked).seconds["heal"] == pytest.approx(texts + healed)


def test_samples_without_end_are_counted_and_not_made(tiny):
    """Ten million of them would take hours to make; some are made to see that each is full."""
    checkpoint = Checkpoint.open(tiny / "model")
    model = sizes.ModelSize.measured(checkpoint, dtype="float32", device="cpu")
    few, many = (
        sizes.TextSizes({}).training(
            {"data": "copying,recall", "max_length": 64, "max_samples": amount, "held_out": 4}, model
        )
        for amount in (40, 10_000_000)
    )
    made = read_examples("copying,recall", checkpoint.tokenizer(), max_length=64, most=40)
    assert few.tokens == sum(len(example.ids) for example in made[4:])
    assert many.tokens == (10_000_000 - 4) * 64


def test_what_was_cut_is_asked_to_write(paced):
    """Eight texts of 64 tokens, written side by side; the unpruned model is not asked."""
    quiet, asked = (estimated(ONE.replace("collapse: false", f"collapse: {word}")) for word in ("false", "null"))
    prompts = sum(len(encode(tokenizer(), prompt)) for prompt in PROMPTS)
    each = prompts * 4 + NEW_TOKENS * (1000 + 4 * 10)
    assert asked.seconds["evaluate"] - quiet.seconds["evaluate"] == 2 * each
    every = estimated(ONE.replace("collapse: false", "collapse: true"))
    assert every.seconds["evaluate"] - asked.seconds["evaluate"] == prompts * 6 + NEW_TOKENS * (1000 + 6 * 10)


def test_probes_are_prompts_and_words(paced):
    quiet, asked = estimated(ONE), estimated(ONE.replace("collapse: false", "collapse: false, probe_items: 1"))
    items = probes(0, 1)
    prompts = sum(len(encode(tokenizer(), item.prompt)) for item in items)
    most = sum(item.room(tokenizer()) for item in items)
    extra = asked.seconds["evaluate"] - quiet.seconds["evaluate"]
    least = max(item.room(tokenizer()) for item in items)
    assert prompts * 14 + least * (3 * 1000 + 14 * 10) <= extra <= prompts * 14 + most * (3 * 1000 + 14 * 10)


def test_profiles_are_runs_of_every_batch_size(paced):
    """Sixteen texts take twice the time of eight, one takes as long."""
    text = ONE.replace("collapse: false", "collapse: false, profile: {batch_sizes: [1, 16], prompt: 5, new_tokens: 3}")
    base, cut = (8 * ((1 + 16) * 5 * layers + (1 + 2) * 3 * (1000 + layers * 10)) for layers in (6, 4))
    assert estimated(text).seconds["profile"] == base + 2 * cut


def test_tasks_are_the_tokens_of_their_documents(paced, monkeypatch):
    """Against the tokens that pass layers and head when the unpruned model is asked."""
    pytest.importorskip("lm_eval")
    data = data_folder(paced / "data")
    tasks = f"collapse: false, tasks: [piqa, winogrande, wikitext], data_dir: {data}"
    quiet, asked = estimated(ONE), estimated(ONE.replace("collapse: false", tasks))
    layers, heads = asked_of(paced, Tasks(["piqa", "winogrande", "wikitext"], batch_size=1, data_dir=data), monkeypatch)
    assert asked.seconds["evaluate"] - quiet.seconds["evaluate"] == layers * 14 + heads * 300


def asked_of(tiny, tasks, monkeypatch):
    """How many tokens pass the layers and the head, counted as they pass."""
    layers, heads, finish, head = [], [], Decoder.finish, Decoder.token_logits
    monkeypatch.setattr(likelihoods, "shares_contexts", lambda _decoder: True)
    monkeypatch.setattr(
        Decoder, "finish", lambda self, ids, **more: layers.append(ids.numel()) or finish(self, ids, **more)
    )
    monkeypatch.setattr(Decoder, "token_logits", lambda self, some: heads.append(len(some)) or head(self, some))
    evaluate(Checkpoint.open(tiny / "model"), text=EvaluationText(()), tasks=tasks)
    return sum(layers), sum(heads)


def test_generated_answers_are_as_long_as_the_task_allows(paced):
    """Three sums, each after five examples; sixteen prompts are written at once, twice the eight that were timed."""
    pytest.importorskip("lm_eval")
    tasks = f"collapse: false, tasks: [gsm8k], data_dir: {data_folder(paced / 'data')}"
    quiet, asked = estimated(ONE), estimated(ONE.replace("collapse: false", tasks))
    (amount,) = amounts(Tasks(["gsm8k"], data_dir=paced / "data"), tokenizer())
    assert (amount.scored, amount.steps, amount.together) == (0, 3 * 256 / 16, 16)
    words = amount.steps * 2 * (3 * 1000 + 14 * 10)
    assert asked.seconds["evaluate"] - quiet.seconds["evaluate"] == amount.passed * 14 + words


def test_tasks_whose_documents_are_elsewhere_are_unknown(tiny):
    foreseen = estimated(STUDY.replace("collapse: false", "collapse: false, tasks: [piqa]"))
    assert foreseen.seconds["evaluate"] is None
    assert foreseen.total_seconds is None
    assert foreseen.unknown == ("time of piqa: the documents may be on the hub",)


def test_opening_models_and_starting_a_worker_count(paced, monkeypatch):
    """Opening takes 10,000 s: of the model to score it, three models to evaluate, the cut to heal it; and writing two."""
    paces = []

    def slow(cls, checkpoint, **options):
        size = measured(checkpoint, **options)
        paces.append(size.pace)
        return replace(size, pace=replace(size.pace, opening=10_000.0))

    measured = sizes.ModelSize.measured
    quick = estimated(ONE)
    monkeypatch.setattr(sizes.ModelSize, "measured", classmethod(slow))
    slow_one = estimated(ONE)
    more = {kind: slow_one.seconds[kind] - quick.seconds[kind] for kind in quick.seconds}
    expected = {"score": 10_000, "plan": 10_000, "prune": 10_000, "heal": 20_000, "evaluate": 30_000}
    assert more == pytest.approx(expected)
    assert slow_one.total_seconds == sum(slow_one.seconds.values()) + START_SECONDS
    assert paces


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
    assert len(study.trials) == {"smoke": 4, "smollm2": 75}[name]


def test_bytes_read_are_those_of_all_passes_over_weights(tiny):
    """Scores and measures open a model once; a cut copies what stays; healing reads for a digest, a walk and a copy."""
    foreseen, sizes_of = estimated(), Checkpoint.open(tiny / "model").sizes
    whole = sizes_of.other_bytes + sum(sizes_of.layer_bytes)
    kept = whole - 2 * sizes_of.layer_bytes[0]
    steps = foreseen.steps
    cuts = steps["prune"] + 3 * steps["heal"] + steps["evaluate"] - 1  # the unpruned model is measured, too
    assert foreseen.read_bytes == (steps["score"] + 1) * whole + cuts * kept
    assert estimated(STUDY.replace("[$TINY/model]", "[org/nowhere]")).read_bytes is None
