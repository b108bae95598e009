"""Tasks against the harness's own model, HFLM, run bare on the same documents."""

import json
import math
import re
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.json
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from documents import COUNT, data_folder, write
from evaluations import ITEMS, evaluation, text
from shortstack.checkpoint import Checkpoint
from shortstack.cli.console import show_result
from shortstack.errors import DataError, InputError
from shortstack.evaluation import Evaluation, EvaluationText, TaskResult, Tasks, compared, evaluate, load_harness
from shortstack.evaluation.suites import SUITES, TASKS, named
from shortstack.machine.device import Compute
from shortstack.machine.formats import MINUS
from shortstack.machine.numbers import share_stderr
from zoo import speaking

pytest.importorskip("lm_eval")

NO_TEXT = EvaluationText(())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return speaking(tmp_path_factory.mktemp("model") / "tiny", bos=True, max_position_embeddings=2048)


@pytest.fixture
def checkpoint(directory) -> Checkpoint:
    return Checkpoint.open(directory)


def measured(checkpoint, *names, **options) -> Evaluation:
    return evaluate(
        checkpoint, text=NO_TEXT, tasks=Tasks(names, **options), compute=Compute(dtype="float32", device="cpu")
    )


def barely(directory, loaded, *, limit=None, batch=4, max_length=None):
    """The harness's results with its own model: logits everywhere, every request for itself."""
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    bare = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(directory),
        batch_size=batch,
        max_length=max_length,
    )
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=1234)
    asked = {"tasks": dict(loaded.tasks), "groups": {loaded.name: loaded.group} if loaded.group else {}}
    return run(bare, asked, limit=limit, bootstrap_iters=100)


@pytest.mark.parametrize(
    ("name", "shots"), [("winogrande", None), ("hellaswag", None), ("lambada_openai", None), ("piqa", 2)]
)
def test_choices_are_judged_as_by_the_harness_alone(name, shots, checkpoint, data):
    found = measured(checkpoint, name, data_dir=data, num_fewshot=shots).tasks[name]
    (loaded,) = load_harness().load([name], data=data)
    for task in loaded.tasks.values() if shots else ():
        task.set_config(key="num_fewshot", value=shots)
    expected = barely(checkpoint.directory, loaded)
    assert found.value == expected["results"][name]["acc,none"]
    of_none = share_stderr(0, COUNT)  # where the harness has 0
    assert found.stderr == pytest.approx(expected["results"][name]["acc_stderr,none"] or of_none)
    assert list(found.outcomes) == [sample["acc"] for sample in expected["samples"][name]]
    assert (found.n, found.metric, found.bos, found.dtype) == (COUNT, "acc", True, "float32")
    assert found.shots == (shots or 0)
    assert len(set(found.documents)) == COUNT
    for metric, value in found.also.items():
        assert value == pytest.approx(expected["results"][name][f"{metric},none"], rel=1e-5)


@pytest.mark.parametrize(("share", "count"), [(0.07, 1), (0.25, 3)])
def test_a_share_of_a_task_is_its_first_documents(share, count, checkpoint, data):
    found = measured(checkpoint, "piqa", data_dir=data, limit=share).tasks["piqa"]
    first = measured(checkpoint, "piqa", data_dir=data, limit=count).tasks["piqa"]
    assert found.n == count
    assert (found.documents, found.outcomes, found.value) == (first.documents, first.outcomes, first.value)


@pytest.mark.parametrize(
    ("name", "length", "said"),
    [
        ("piqa", 1, "room for an answer of"),
        ("gsm8k", 256, "more than the 256 tokens that an answer of gsm8k may have"),
        ("piqa", 2049, "at most 2048 tokens|positions"),
    ],
)
def test_windows_that_do_not_fit_the_task_or_the_model_are_refused(name, length, said, data, tmp_path):
    learnt = Checkpoint.open(speaking(tmp_path / "gpt2", "gpt2", n_positions=2048))
    with pytest.raises(InputError, match=said) as refused:
        measured(learnt, name, data_dir=data, max_length=length)
    assert refused.value.option == "max_length"


def test_pages_longer_than_the_window_have_the_harness_s_perplexity(checkpoint, data):
    found = measured(checkpoint, "wikitext", data_dir=data, max_length=64).tasks["wikitext"]
    expected = barely(checkpoint.directory, load_harness().load(["wikitext"], data=data)[0], max_length=64)
    assert found.value == pytest.approx(expected["results"]["wikitext"]["word_perplexity,none"], rel=1e-5)
    assert math.isnan(found.stderr)
    nats = [sample["word_perplexity"] for sample in expected["samples"]["wikitext"]]
    words = sum(count for _, count in nats)
    assert found.outcomes == pytest.approx([total * len(nats) / words for total, _ in nats], rel=1e-5)
    assert -sum(found.outcomes) / len(nats) == pytest.approx(math.log(found.value), rel=1e-5), "pages count by words"


def test_tasks_are_answered_by_weights_read_layer_by_layer(checkpoint, data, monkeypatch):
    whole = measured(checkpoint, "piqa", "lambada_openai", "wikitext", data_dir=data)
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    monkeypatch.setattr(Checkpoint, "model", lambda *_args, **_options: pytest.fail("it was loaded whole"))
    streamed = measured(checkpoint, "piqa", "lambada_openai", "wikitext", data_dir=data)
    for name, task in whole.tasks.items():
        assert streamed.tasks[name].value == pytest.approx(task.value, rel=1e-6)
        assert streamed.tasks[name].outcomes == pytest.approx(task.outcomes, rel=1e-5)


def test_a_task_that_asks_to_write_needs_the_whole_model_in_memory(checkpoint, data, monkeypatch):
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 1000)
    with pytest.raises(InputError, match="for its weights"):
        measured(checkpoint, "gsm8k", data_dir=data)


def test_generation_is_the_harness_s_own(checkpoint, data, monkeypatch):
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.max_gen_toks", property(lambda _self: 12))
    found = measured(checkpoint, "gsm8k", data_dir=data, batch_size=2).tasks["gsm8k"]
    loaded = load_harness().load(["gsm8k"], data=data)[0]
    expected = barely(checkpoint.directory, loaded, batch=2)
    assert (found.shots, found.n) == (5, 3)
    assert found.value == expected["results"]["gsm8k"]["exact_match,strict-match"]


def test_of_several_ways_to_read_an_answer_that_of_the_value_gives_the_outcomes(checkpoint, data, monkeypatch):
    """Without the mark of the answer a lenient filter finds the number, and the strict one does not."""
    answers = {"0 and one?": "#### 1", "1 and one?": "It is 2", "2 and one?": "#### 7"}

    def written(_model, requests, **_options):
        return [answers[request.args[0].rpartition("Question: ")[2].partition("\n")[0]] for request in requests]

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", written)
    found = measured(checkpoint, "gsm8k", data_dir=data).tasks["gsm8k"]
    assert found.outcomes == (1.0, 0.0, 0.0)
    assert found.value == pytest.approx(1 / 3)


GOOD = b'{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}'
OWN = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{goal}}}}"
doc_to_target: label
doc_to_choice: "{{{{[sol1, sol2]}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 7}}
"""


@pytest.fixture
def own(tmp_path, data) -> Path:
    """The user's own tasks, one of five documents and one of twelve, and the group of both."""
    rows = [json.loads(line) for line in (data / "piqa/validation.jsonl").read_text().splitlines()]
    write(tmp_path / "few.jsonl", rows[:5])
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, file in (("own_few", tmp_path / "few.jsonl"), ("own_all", data / "piqa/validation.jsonl")):
        (folder / f"{name}.yaml").write_text(OWN.format(name=name, file=file))
    (folder / "group.yaml").write_text(
        "group: own\ntask: [own_few, own_all]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
        "metadata: {version: 3}\n"
    )
    return folder


@pytest.fixture
def few(monkeypatch) -> None:
    """The harness's own tasks are left aside: reading their fifteen thousand files takes seconds."""
    original = load_harness().TaskManager
    monkeypatch.setattr(
        load_harness(), "TaskManager", lambda **options: original(**{**options, "include_defaults": False})
    )


@pytest.mark.usefixtures("few")
def test_own_tasks_and_a_group_weighted_by_its_documents(checkpoint, own):
    found = measured(checkpoint, "own", "own_few", include=own).tasks
    group = found["own"]
    assert (group.n, group.version, found["own_few"].version) == (17, "3", "7")
    assert group.parts["own_few"] == found["own_few"].value
    assert group.value == pytest.approx(statistics.fmean(group.outcomes))
    assert group.value == pytest.approx((5 * group.parts["own_few"] + 12 * group.parts["own_all"]) / 17)
    assert len(set(group.documents)) == 17
    assert group.chance is None


@pytest.mark.usefixtures("few")
def test_a_group_is_the_average_of_those_of_its_tasks_that_have_its_metric(checkpoint, own):
    few = own / "own_few.yaml"
    both = few.read_text().replace("[{metric: acc,", "[{metric: acc}, {metric: acc_norm,")
    few.write_text(both)
    group = own / "group.yaml"
    group.write_text(group.read_text().replace("metric: acc,", "metric: acc_norm,"))
    found = measured(checkpoint, "own", include=own).tasks["own"]
    assert (found.metric, found.n, [*found.parts]) == ("acc_norm", 5, ["own_few"])
    assert found.value == found.parts["own_few"] == statistics.fmean(found.outcomes)


@pytest.mark.usefixtures("few")
def test_a_group_whose_tasks_count_the_same_is_compared_by_the_average_that_is_shown(checkpoint, own):
    group = own / "group.yaml"
    group.write_text(group.read_text().replace("weight_by_size: true", "weight_by_size: false"))
    model = measured(checkpoint, "own", include=own)
    known = model.tasks["own"]
    assert known.value == pytest.approx(statistics.fmean(known.parts.values())), "as the harness has it"
    base = replace(
        model, tasks={"own": replace(known, outcomes=tuple([1 - outcome for outcome in known.outcomes[:5]] + [1] * 12))}
    )
    difference = known.value - (1 - known.parts["own_few"] + 1) / 2
    found = compared(model, base).against["own"]
    assert (found.value, found.difference) == (pytest.approx(known.value), pytest.approx(difference))
    assert found.difference != pytest.approx(
        statistics.fmean(known.outcomes) - statistics.fmean(base.tasks["own"].outcomes)
    )


def test_parquet_is_read_as_jsonl_is(checkpoint, data, tmp_path):
    table = pyarrow.json.read_json(data / "piqa/validation.jsonl")
    (tmp_path / "piqa").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "piqa/validation.parquet")
    assert (
        measured(checkpoint, "piqa", data_dir=tmp_path).tasks["piqa"].outcomes
        == measured(checkpoint, "piqa", data_dir=data).tasks["piqa"].outcomes
    )


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("content", [b"", b"\x80\x02PK\x00", b"[]\n"])
def test_the_data_of_an_own_task_that_cannot_be_read_is_named(content, checkpoint, own, tmp_path):
    (tmp_path / "few.jsonl").write_bytes(content)
    with pytest.raises(DataError) as refused:
        measured(checkpoint, "own_few", include=own)
    assert refused.value.where == "the data of own_few"
    assert "while generating" not in refused.value.found, "the reason, not that there is one"
    assert "hub" not in refused.value.found


@pytest.mark.usefixtures("few")
def test_an_own_task_may_have_python_of_the_user_s_own(checkpoint, own):
    (own / "code.py").write_text("def right(items):\n    return sum(items) / len(items)\n")
    path = own / "own_few.yaml"
    path.write_text(path.read_text().replace("aggregation: mean", "aggregation: !function code.right"))
    found = measured(checkpoint, "own_few", include=own).tasks["own_few"]
    assert found.value == statistics.fmean(found.outcomes)


def result(metric: str, value: float, outcomes=(1.0, 0.0)) -> TaskResult:
    documents = tuple(map(str, range(len(outcomes))))
    return TaskResult(metric, value, 0.1, 2, "1", 0, False, "float32", 0.5, True, documents, outcomes)


@pytest.mark.usefixtures("few")
def test_one_document_is_nothing_to_compare_two_models_on(own):
    for name, limit in (("own_few", 1), ("own_few", 0.2), ("own_few,own_all", 0.1)):
        asked = Tasks(name, limit=limit, include=own)
        with pytest.raises(InputError, match="two documents of own_few"):
            asked.check_paired(asked.load())
    group = own / "group.yaml"
    alike = group.read_text().replace("weight_by_size: true", "weight_by_size: false")
    group.write_text(alike)
    asked = Tasks("own", limit=0.2, include=own)
    with pytest.raises(InputError, match="two documents of each task of own"):
        asked.check_paired(asked.load())
    group.write_text(alike.replace("weight_by_size: false", "weight_by_size: true"))
    for name, limit in (
        ("own", 1),
        ("own_few", 2),
        ("own_few", 1.0),
        ("own_few", None),
    ):  # a group has one of each task
        asked = Tasks(name, limit=limit, include=own)
        asked.check_paired(asked.load())


def test_a_suite_s_average_is_of_its_own_tasks_and_stands_for_itself(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    paper = {name: result("acc", 0.1 * number) for number, name in enumerate(SUITES["paper"], start=1)}
    found = Evaluation("m", {}, tasks={**paper, "gsm8k": result("exact_match", 0.0)})
    assert found.averages == {"paper": pytest.approx(0.45)}
    assert found.to_dict()["averages"] == found.averages
    assert found.average == pytest.approx(0.4)
    show_result(compared(found, replace(found, model="base")))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "Average" in line]
    assert re.search(r"Average, paper +│ mean of shares +│ +0\.4500 +│ +0\.4500 ", row)
    some = Evaluation("m", {}, tasks={name: paper[name] for name in ("piqa", "arc_easy")})
    assert some.averages == {}
    assert some.named_averages == {"Average": pytest.approx(0.5)}
    fewer = replace(some, base=Evaluation("base", {}, tasks={**some.tasks, "boolq": result("acc", 0.9)}))
    _, _, value, unpruned, *_ = fewer.table().rows[-1].cells
    assert value.value == unpruned.value == pytest.approx(0.5), "both of the tasks that both were asked"
    language = {"wikitext": result("word_perplexity", 30.0), "lambada_openai": result("acc", 0.5)}
    assert Evaluation("m", {}, tasks=language).averages == {}
    assert Evaluation("m", {}, tasks=language).average == 0.5, "only of shares"
    assert Evaluation("m", {}, tasks={"wikitext": language["wikitext"]}).average is None


def test_a_comparison_pairs_probes_item_by_item():
    model, base = evaluation({}, (ITEMS - 6, ITEMS)), replace(evaluation({}, (ITEMS, ITEMS)), model="base")
    found = compared(model, base)
    assert found.against == {}
    assert found.to_dict()["base"]["model"] == "base"
    assert found.probes_against["0"].difference == -6 / ITEMS
    assert found.probes_against["0"].p == pytest.approx(2 * 0.5**6)
    assert found.probes_against["0"].p_holm == pytest.approx(4 * 0.5**6), "two probes are compared together"
    assert found.to_dict()["probes_against"]["1"]["difference"] == 0
    mean = found.table().rows[-1]
    assert mean.label == "generation probes"
    difference, errors = mean.cells[6], [pair.stderr for pair in found.probes_against.values()]
    assert difference.value == pytest.approx(-3 / ITEMS), "each probe counts the same"
    assert difference.stderr == pytest.approx(math.hypot(*errors) / 2)
    with pytest.raises(DataError):
        compared(model, Evaluation("base", {}))
    with pytest.raises(DataError, match="the texts"):
        compared(Evaluation("model", {"a.txt": None}), Evaluation("base", {"b.txt": None}))


def test_what_is_kept_above_chance_is_by_the_level_of_each_task_and_probe():
    right, some = (1.0,) * 40, (1.0, 1.0, 1.0, 0.0) * 10
    levels = {"a": 0.25, "b": 0.5, "c": None}
    ours, theirs = ({n: replace(result("acc", 1, each), chance=chance) for n, chance in levels.items()}
                    for each in (some, right))  # fmt: skip
    probes = evaluation({}, (ITEMS // 2,)), evaluation({}, (ITEMS,))
    model, base = (
        replace(each, tasks=tasks, probes={"0": replace(each.probes["0"], chance=0.2)})
        for each, tasks in zip(probes, (ours, theirs), strict=True)
    )
    found = compared(model, base)
    kept = {name: pair.retention_above_chance for name, pair in found.against.items()}
    assert kept == {"a": pytest.approx(100 * 0.5 / 0.75), "b": pytest.approx(50), "c": None}
    assert found.probes_against["0"].retention_above_chance == pytest.approx(100 * 0.3 / 0.8)


def test_perplexities_of_other_tokens_are_said_not_to_compare():
    asked = {digest: text(2.0).windows | {"sha256": digest, "bos": False} for digest in "ab"}
    one, same, other = (evaluation({"t": replace(text(2.0), windows=asked[digest])}) for digest in "aab")
    assert not compared(one, same).table().notes[:-1], "but for what is said of collapse"
    assert "t: the two were measured on other tokens" in " ".join(compared(one, other).table().notes)


def test_a_difference_in_another_unit_than_the_values_says_its_unit(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    pages = replace(result("word_perplexity", 30.0, (-3.0, -3.8)), higher_is_better=False)
    errors = replace(result("brier_score", 0.3, (-0.3, -0.3)), higher_is_better=False)
    ours = {"wikitext": pages, "own": errors, "piqa": result("acc", 0.5)}
    theirs = {**ours, "wikitext": replace(pages, value=20.0, outcomes=(-2.5, -3.5))}
    show_result(compared(Evaluation("m", {}, tasks=ours), Evaluation("base", {}, tasks=theirs)))
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"wikitext │ word_perplexity │ 30.0000 ± \S+ │ 20.0000 ± 0.1000 │ .* │ {MINUS}0.4000", shown)
    assert "wikitext: unpruned and value are word_perplexity; the difference and its interval" in shown
    assert "are of the log-likelihood in nats per word, higher is better." in shown
    assert "own: of brier_score less is better; the difference and its interval have the sign turned." in shown
    assert "piqa:" not in shown


def test_a_number_of_all_documents_together_is_shown_and_not_compared(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    whole = result("mcc", 0.4, (math.nan, math.nan))
    base = Evaluation("base", {}, tasks={"cola": whole, "piqa": result("acc", 0.5)})
    found = compared(replace(base, model="m"), base)
    assert list(found.against) == ["piqa"]
    assert found.against["piqa"].p_holm == found.against["piqa"].p, "it is the only one that is tested"
    show_result(found)
    shown = capsys.readouterr().out
    assert "cola: not compared, since mcc is one number for all documents, not one for each." in shown
    assert len(re.findall(r" 0\.4000 ", shown)) == 2
    with pytest.raises(DataError):
        compared(found, replace(base, tasks={"piqa": base.tasks["piqa"], "other": whole}))


def test_the_paper_s_suite_and_every_standard_task_are_the_harness_s(tmp_path):
    from lm_eval.tasks import TaskManager

    harness = load_harness()
    for task in TASKS.values():
        folder = tmp_path / task.name
        for split in {task.evaluated, *task.needs}:
            files = (harness.STOCK / task.stock).parent.glob(f"{task.name}_*")
            parts = [path.stem.removeprefix(f"{task.name}_") for path in files]
            for part in parts if task.group else [""]:
                write(
                    tmp_path / "data" / f"{task.files[split].format(part=part)}.jsonl",
                    [dict.fromkeys(task.columns.split(), 1)],
                )
        folder.mkdir()
        harness.write_overlays([task.name], tmp_path / "data", harness.STOCK, folder)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        assert task.name in manager.all_tasks
        assert len(manager.all_subtasks) == {"mmlu": 57, "cmmlu": 67}.get(task.name, 1)
        config = next(iter(manager.task_index[name].cfg for name in manager.all_subtasks))
        assert task.metric in {metric["metric"] for metric in config["metric_list"]}
        assert config.get("num_fewshot", 0) == (5 if task.name == "gsm8k" else 0)
        assert config["dataset_path"] == "json"


@pytest.mark.usefixtures("few")
def test_names_unfold_and_an_unknown_one_has_neighbours(data):
    assert named(" paper , piqa") == SUITES["paper"]
    for wrong, near in (("helaswag", "hellaswag"), ("papr", "paper")):
        with pytest.raises(InputError, match=near):
            load_harness().load([wrong], data=data)
    with pytest.raises(InputError, match="tasks"):
        Tasks("piqa,")


def test_what_is_missing_is_said(data, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"openbookqa/test\.jsonl or openbookqa/test\.parquet"):
        Tasks("openbookqa", data_dir=data).load()
    shutil.copytree(data / "gsm8k", tmp_path / "gsm8k")
    (tmp_path / "gsm8k/train.jsonl").unlink()
    with pytest.raises(DataError, match=r"gsm8k/train\.jsonl"):
        Tasks("gsm8k", data_dir=tmp_path).load()
    with pytest.raises(DataError, match="data_dir"):
        Tasks("piqa").load()  # the hub, which tests do not reach
    for option in ({"limit": 0}, {"batch_size": 0}, {"data_dir": tmp_path / "none"}, {"include": tmp_path / "none"}):
        with pytest.raises(InputError):
            Tasks("piqa", **option)
    monkeypatch.delitem(sys.modules, "shortstack.evaluation.harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"shortstack\[eval\]"):
        Tasks("piqa", data_dir=data).load()


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [
        ("jsonl", b'{"goal": "a", "label": 0}', "no sol1, sol2"),
        ("jsonl", b"\n", "nothing but white space"),
        ("jsonl", GOOD + b"\n{", "line 2"),
        ("jsonl", GOOD + b"\n5", r"piqa/validation.*docs/evaluate"),
        ("parquet", None, "an empty table"),
        ("parquet", b"no parquet", "a parquet file"),
    ],
)
def test_a_local_file_that_cannot_be_used_is_named(suffix, content, said, data, tmp_path):
    path = tmp_path / f"piqa/validation.{suffix}"
    path.parent.mkdir()
    if content is None:
        pyarrow.parquet.write_table(pyarrow.json.read_json(data / "piqa/validation.jsonl").slice(0, 0), path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        Tasks("piqa", data_dir=tmp_path).load()


def test_an_own_task_file_that_is_no_yaml_is_named_with_its_line(own):
    Tasks("own_few", include=own)  # tags such as !function are the harness's to read
    (own / "more").mkdir()
    (own / "more" / "other.yaml").write_text("task: other\ndoc_to_text: [open\n")
    with pytest.raises(InputError, match=r"more/other\.yaml, line 3"):
        Tasks("own_few", include=own)
