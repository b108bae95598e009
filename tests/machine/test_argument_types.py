"""Arguments of the wrong type, in our words."""

import builtins
import inspect
from pathlib import Path

import numpy as np
import pytest

import shortstack as ss
from shortstack.comparison import EvaluationSpec
from shortstack.errors import InputError
from shortstack.machine.clock import Clock
from shortstack.machine.typed import ALIASES, OPEN, PLAIN, typed
from shortstack.planning import Chosen
from shortstack.profiling import Timing


class Plan:
    pass


class Longer(Plan):
    pass


@typed
def cut(
    plan: "Plan | int",
    out: "str | Path" = "x",
    *,
    share: "float | None" = None,
    many: "list[int] | None" = None,
    model: "Model | None" = None,  # noqa: F821  read as text
    compute: "bool" = True,
) -> str:
    """The layers that are cut."""
    return f"{plan} {out} {share} {many} {model} {compute}"


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((Plan(),), {}),
        ((Longer(), Path("x")), {"share": 1}),
        ((np.int64(3),), {"share": np.float32(0.5), "compute": np.bool_(False)}),
        ((3, "y"), {"many": "not looked at", "model": 5}),
    ],
)
def test_what_the_annotations_name_goes_through(args, options):
    assert cut(*args, **options).startswith(str(args[0])[:10])


@pytest.mark.parametrize(
    ("args", "options", "said"),
    [
        (("25%",), {}, r"plan: expected Plan or int, found '25%' \(str\). To fix it: give one"),
        ((3, 5), {}, r"out: expected str or Path, found 5 \(int\)"),
        ((3,), {"share": "0.5"}, "share: expected float or None"),
        ((3,), {"compute": "cpu"}, "compute: expected bool, found 'cpu'"),
    ],
)
def test_others_are_named_with_what_was_expected(args, options, said):
    with pytest.raises(InputError, match=said):
        cut(*args, **options)


def test_options_have_types_too():
    for make, said in (
        (lambda: ss.Compute(device=0), "device: expected str, found 0"),
        (lambda: ss.Schedule(learning_rate="1e-4"), "learning_rate: expected float"),
        (lambda: ss.Choice(drop=[3]), "drop: expected str or int or None"),
        (lambda: ss.CalibrationText("pydoc", samples=[10]), "samples: expected"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    assert ss.Schedule(learning_rate=1).learning_rate == 1


FUNCTIONS = [function for name in dir(ss) if inspect.isfunction(function := getattr(ss, name))]


def test_public_functions_refuse_wrong_types_before_they_begin():
    unchecked = {function.__name__ for function in FUNCTIONS if not hasattr(function, "__wrapped__")}
    assert unchecked == {"compared", "modelfile", "run_study", "source_of", "verify_gguf"}
    with pytest.raises(InputError, match=r"compute: expected Compute, found 'cpu' \(str\)\. To fix it: give one"):
        ss.score("no such model", compute="cpu")


def test_every_name_that_is_looked_for_is_a_class_there_is():
    """An alias, which no object's class is called by, would refuse everything."""
    annotations = {each.annotation for f in FUNCTIONS for each in inspect.signature(f).parameters.values()}
    named = [ALIASES.get(annotation, annotation).split(" | ") for annotation in annotations]
    checked = {kind for kinds in named if all(map(str.isidentifier, kinds)) and not OPEN & {*kinds} for kind in kinds}
    others = {"EvaluationSpec": EvaluationSpec, "Chosen": Chosen, "Clock": Clock, "Timing": Timing, **vars(builtins)}
    for name in checked - {*PLAIN}:
        assert isinstance(getattr(ss, name, None) or others[name], type), name
