"""Tasks answered by vLLM, with the harness's HFLM in the place of its VLLM: what that is given, and what becomes of it."""

import importlib.metadata
import sys
import types

import pytest

from documents import COUNT, data_folder
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.errors import InputError
from shortstack.evaluation import EvaluationText, Tasks, evaluate
from shortstack.machine.device import Compute
from zoo import speaking

pytest.importorskip("lm_eval")
NO_TEXT = EvaluationText(())
OURS, THEIRS = "shortstack.evaluation.vllm", "lm_eval.models.vllm_causallms"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def checkpoint(tmp_path, own_cache):
    return Checkpoint.open(speaking(tmp_path / "tiny", bos=True, max_position_embeddings=2048))


@pytest.fixture
def engine(monkeypatch):
    """What VLLM was given, each time that one was made."""
    from lm_eval.models.huggingface import HFLM

    made = []

    class Standing(HFLM):
        def __init__(self, pretrained, dtype, trust_remote_code, batch_size, max_length, seed):
            made.append(
                {
                    "pretrained": pretrained,
                    "dtype": dtype,
                    "trust_remote_code": trust_remote_code,
                    "batch_size": batch_size,
                    "max_length": max_length,
                    "seed": seed,
                }
            )
            if pretrained.endswith("unknown"):
                raise ValueError("no such\narchitecture")
            super().__init__(pretrained, dtype=dtype, device="cpu", batch_size=4, max_length=max_length)

    module = types.ModuleType(THEIRS)
    module.VLLM = Standing
    monkeypatch.setitem(sys.modules, THEIRS, module)
    real = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9" if name == "vllm" else real(name))
    sys.modules.pop(OURS, None)
    yield made
    sys.modules.pop(OURS, None)


def measured(checkpoint, *names, **options):
    return evaluate(checkpoint, text=NO_TEXT, tasks=Tasks(names, **options), compute=Compute(dtype="float32")).tasks


def test_the_engine_is_given_the_checkpoint_and_its_results_are_ours(checkpoint, data, engine, monkeypatch):
    own = measured(checkpoint, "piqa", "winogrande", data_dir=data)
    monkeypatch.setattr(Decoder, "open", lambda *_, **__: pytest.fail("our model was loaded, too"))
    found = measured(
        checkpoint, "piqa", "winogrande", data_dir=data, backend="vllm", batch_size=3, max_length=512, seed=7
    )
    assert engine == [
        {
            "pretrained": str(checkpoint.directory),
            "dtype": "float32",
            "trust_remote_code": False,
            "batch_size": 3,
            "max_length": 512,
            "seed": 1241,
        }
    ]
    for name, result in found.items():
        assert result.outcomes == own[name].outcomes
        assert result.documents == own[name].documents
        assert (result.value, result.n, result.bos, result.dtype) == (own[name].value, COUNT, True, "float32")


def test_results_of_the_engine_are_kept_apart_from_ours(checkpoint, data, engine):
    own = measured(checkpoint, "piqa", data_dir=data)["piqa"]
    assert measured(checkpoint, "piqa", data_dir=data, backend="vllm")["piqa"].digest != own.digest
    assert len(engine) == 1
    assert engine[0]["batch_size"] == "auto"
    measured(checkpoint, "piqa", data_dir=data, backend="vllm")
    assert len(engine) == 1, "the second time it was in the cache"
    assert measured(checkpoint, "piqa", data_dir=data)["piqa"] == own


def test_text_is_measured_here_whoever_answers_the_tasks(checkpoint, data, engine, tmp_path):
    (tmp_path / "a.txt").write_text("the walk visits every layer once " * 40)
    source, tasks = str(tmp_path / "a.txt"), Tasks("piqa", data_dir=data, backend="vllm")
    found = evaluate(checkpoint, text=EvaluationText([source], 24), tasks=tasks, compute=Compute(dtype="float32"))
    assert (
        found.perplexity
        == evaluate(checkpoint, text=EvaluationText([source], 24), compute=Compute(dtype="float32")).perplexity
    )
    assert list(found.tasks) == ["piqa"]


def test_an_engine_that_does_not_start_is_an_error_and_nothing_is_kept(data, engine, tmp_path, own_cache):
    checkpoint = Checkpoint.open(speaking(tmp_path / "unknown"))
    with pytest.raises(InputError, match=r"found no such architecture\. To fix it: ask for a smaller max_length"):
        measured(checkpoint, "piqa", data_dir=data, backend="vllm")
    assert not [*(tmp_path / "cache/evaluations").iterdir()]


def test_without_vllm_nothing_is_read(checkpoint, data, monkeypatch):
    sys.modules.pop(OURS, None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(Tasks, "load", lambda _: pytest.fail("documents were read"))
    with pytest.raises(InputError, match="backend: expected vLLM"):
        measured(checkpoint, "piqa", data_dir=data, backend="vllm")


def test_a_device_is_vllm_s_own_choice(checkpoint, data, engine):
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        evaluate(
            checkpoint,
            text=EvaluationText(()),
            tasks=Tasks("piqa", data_dir=data, backend="vllm"),
            compute=Compute(device="cpu"),
        )
    assert not engine


def test_the_backend_is_an_option_of_tasks():
    assert Tasks("piqa").backend == "shortstack"
    with pytest.raises(InputError, match="one of shortstack, vllm"):
        Tasks("piqa", backend="other")


def test_the_arithmetic_is_what_is_asked_for(checkpoint, data, engine):
    tasks = Tasks("piqa", data_dir=data, backend="vllm")
    assert (
        evaluate(checkpoint, text=NO_TEXT, tasks=tasks, compute=Compute(dtype="bfloat16")).tasks["piqa"].dtype
        == "bfloat16"
    )
    assert engine[0]["dtype"] == "bfloat16"
