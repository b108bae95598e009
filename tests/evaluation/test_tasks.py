"""Tasks against the harness's own model, HFLM, run bare on the same documents."""

import json
import math
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
from shortstack.checkpoint import Checkpoint
from shortstack.errors import DataError, InputError
from shortstack.evaluation import EvalConfig, EvalResult, evaluate, load_harness
from shortstack.evaluation.paired import share_stderr
from shortstack.evaluation.suites import TASKS
from shortstack.machine.device import Compute
from zoo import speaking

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return speaking(tmp_path_factory.mktemp("model") / "tiny", bos=True, max_position_embeddings=2048)


@pytest.fixture
def checkpoint(directory) -> Checkpoint:
    return Checkpoint.open(directory)


def measured(checkpoint, *names, **settings) -> EvalResult:
    return evaluate(
        checkpoint, EvalConfig("none", tasks=names, **settings), compute=Compute(dtype="float32", device="cpu")
    )


def loaded(tasks, **settings):
    return load_harness().load(EvalConfig("none", tasks=tasks, **settings))


def barely(directory, task, *, limit=None, batch=4):
    """The harness's results with its own model: logits everywhere, every request for itself."""
    from lm_eval.evaluator import evaluate as run
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    bare = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(directory), batch_size=batch)
    for part in task.tasks.values():
        part.set_fewshot_seed(seed=1234)
    asked = {"tasks": dict(task.tasks), "groups": {task.name: task.group} if task.group else {}}
    return run(bare, asked, limit=limit, bootstrap_iters=100)


@pytest.mark.parametrize(
    ("name", "shots"), [("winogrande", None), ("hellaswag", None), ("lambada_openai", None), ("piqa", 2)]
)
def test_choices_are_judged_as_by_the_harness_alone(name, shots, checkpoint, data):
    found = measured(checkpoint, name, data_dir=data, num_fewshot=shots).tasks[name]
    (task,) = loaded(name, data_dir=data)
    for part in task.tasks.values() if shots else ():
        part.set_config(key="num_fewshot", value=shots)
    expected = barely(checkpoint.directory, task)
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


def test_answers_longer_than_the_model_reads_are_refused(data, tmp_path):
    """GSM8K's may have 256 tokens."""
    learnt = Checkpoint.open(speaking(tmp_path / "gpt2", "gpt2", n_positions=256))
    with pytest.raises(InputError) as refused:
        measured(learnt, "gsm8k", data_dir=data)
    assert refused.value.option == "tasks"


def test_pages_longer_than_the_window_have_the_harness_s_perplexity(data, tmp_path):
    short = Checkpoint.open(speaking(tmp_path / "tiny", bos=True, max_position_embeddings=64))
    found = measured(short, "wikitext", data_dir=data).tasks["wikitext"]
    expected = barely(short.directory, loaded("wikitext", data_dir=data)[0])
    assert found.value == pytest.approx(expected["results"]["wikitext"]["word_perplexity,none"], rel=1e-5)
    assert found.stderr is None
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


def test_generation_is_the_harness_s_own(checkpoint, data, monkeypatch):
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.max_gen_toks", property(lambda _self: 12))
    found = measured(checkpoint, "gsm8k", data_dir=data, batch_size=2).tasks["gsm8k"]
    expected = barely(checkpoint.directory, loaded("gsm8k", data_dir=data)[0], batch=2)
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
def test_a_group_whose_tasks_count_the_same_is_compared_by_the_average_that_is_shown(checkpoint, own):
    group = own / "group.yaml"
    group.write_text(group.read_text().replace("weight_by_size: true", "weight_by_size: false"))
    model = measured(checkpoint, "own", include=own)
    known = model.tasks["own"]
    assert known.value == pytest.approx(statistics.fmean(known.parts.values())), "as the harness has it"
    base = replace(
        model, tasks={"own": replace(known, outcomes=tuple([1 - outcome for outcome in known.outcomes[:5]] + [1] * 12))}
    )
    found, other = model.compare_to(base).against["own"], (1 - known.parts["own_few"] + 1) / 2
    assert (found.value, found.difference) == (pytest.approx(known.value), pytest.approx(known.value - other))


def test_parquet_is_read_as_jsonl_is(checkpoint, data, tmp_path):
    table = pyarrow.json.read_json(data / "piqa/validation.jsonl")
    (tmp_path / "piqa").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "piqa/validation.parquet")
    assert (
        measured(checkpoint, "piqa", data_dir=tmp_path).tasks["piqa"].outcomes
        == measured(checkpoint, "piqa", data_dir=data).tasks["piqa"].outcomes
    )


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("content", [b"", b"\x80\x02PK\x00"])
def test_unreadable_data_of_an_own_task_is_named(content, own, tmp_path):
    (tmp_path / "few.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="own_few"):
        loaded("own_few", include=own)


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
@pytest.mark.parametrize(("wrong", "near"), [("helaswag", "hellaswag"), ("papr", "paper")])
def test_an_unknown_name_has_neighbours(wrong, near, data):
    with pytest.raises(InputError, match=near):
        loaded(wrong, data_dir=data)


@pytest.mark.parametrize(
    ("names", "missing"), [("openbookqa", "openbookqa/test.jsonl"), ("gsm8k", "gsm8k/train.jsonl"), ("piqa", None)]
)
def test_missing_documents_are_named(names, missing, data, tmp_path):
    shutil.copytree(data / "gsm8k", tmp_path / "gsm8k")
    (tmp_path / "gsm8k/train.jsonl").unlink()
    with pytest.raises(DataError, match=missing or "piqa"):
        loaded(names, data_dir=tmp_path if missing else None)  # or on the hub, which tests do not reach


def test_tasks_need_the_extra(data, monkeypatch):
    monkeypatch.delitem(sys.modules, "shortstack.evaluation.harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"shortstack\[eval\]"):
        loaded("piqa", data_dir=data)


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [
        ("jsonl", b'{"goal": "a", "label": 0}', "no sol1, sol2"),
        ("jsonl", b"\n", "piqa/validation"),
        ("jsonl", GOOD + b"\n{", "line 2"),
        ("jsonl", GOOD + b"\n5", "piqa/validation"),
        ("parquet", None, "piqa/validation"),
        ("parquet", b"no parquet", "piqa/validation"),
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
        loaded("piqa", data_dir=tmp_path)


def test_an_own_task_file_that_is_no_yaml_is_named_with_its_line(own):
    EvalConfig("none", tasks="own_few", include=own)  # tags such as !function are the harness's to read
    (own / "more").mkdir()
    (own / "more" / "other.yaml").write_text("task: other\ndoc_to_text: [open\n")
    with pytest.raises(InputError, match=r"more/other\.yaml, line 3"):
        EvalConfig("none", tasks="own_few", include=own)
