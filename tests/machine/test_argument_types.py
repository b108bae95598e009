"""Arguments of the wrong type, in our words."""

import builtins
import inspect
from pathlib import Path

import numpy as np
import pytest

import shortstack as ss
from shortstack.errors import InputError
from shortstack.machine.typed import PLAIN, _kinds, typed


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
    """What is cut."""
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
        (("25%",), {}, r"plan: expected Plan or a whole number, found a str, '25%'"),
        ((3, 5), {}, "out: expected text or a path, found an int, 5"),
        ((3,), {"share": "0.5"}, "share: expected a number or None"),
        ((3,), {"compute": "cpu"}, "compute: expected True or False, found a str, 'cpu'"),
    ],
)
def test_others_are_named_with_what_was_expected(args, options, said):
    with pytest.raises(InputError, match=said):
        cut(*args, **options)


def test_options_have_types_too():
    for make, said in (
        (lambda: ss.Compute(device=0), "device: expected text, found an int"),
        (lambda: ss.Schedule(learning_rate="1e-4"), "learning_rate: expected a number"),
        (lambda: ss.Choice(drop=[3]), "drop: expected text or a whole number or None"),
        (lambda: ss.CalibrationText("pydoc", samples=[10]), "samples: expected"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    assert ss.Schedule(learning_rate=1).learning_rate == 1


def test_too_many_arguments_are_pythons_to_refuse():
    with pytest.raises(TypeError, match="too many positional arguments"):
        cut(1, "x", 3)
    assert cut.__doc__ == "What is cut."


@pytest.mark.parametrize(
    ("function", "args", "options"),
    [
        ("score", ("demo",), {"compute": "cpu"}),
        ("depth_curve", ("demo", "pydoc"), {"compute": "cpu"}),
        ("choose", ("demo", "ppl"), {}),
        ("prune", ("demo", 25, "out"), {}),
        ("prune_gguf", ("demo.gguf", 3, "out.gguf"), {}),
        ("prune_layers", (None, 3), {}),
        ("heal", ("demo", None, "pydoc"), {}),
        ("heal_in_turns", ("demo", "out", 2, "pydoc"), {}),
        ("evaluate", ("demo",), {"tasks": "piqa"}),
        ("profile", ("demo",), {"timing": 3}),
        ("compare", ("demo", "pydoc", "pydoc"), {}),
        ("verify", ("demo",), {"device": 0}),
        ("repair", ("demo", {3}, "pydoc"), {"compute": "cpu"}),
        ("shrink", ("demo", "out", {"drop": 2}), {}),
        ("export_gguf", ("demo", 3), {}),
        ("push_to_hub", ("demo", 3), {}),
        ("write_report", (3, "out"), {}),
    ],
)
def test_public_functions_refuse_wrong_types_before_they_begin(function, args, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected .*, found an? "):
        getattr(ss, function)(*args, **options)
    assert not list(tmp_path.iterdir())


def test_every_name_that_is_looked_for_is_a_class_there_is():
    """An alias, which no object's class is called by, would refuse everything."""
    functions = [
        each for name in dir(ss) if inspect.isfunction(each := getattr(ss, name)) and hasattr(each, "__wrapped__")
    ]
    annotations = [each.annotation for f in functions for each in inspect.signature(f).parameters.values()]
    names = {kind for annotation in annotations for kind in _kinds(annotation)} - {*PLAIN}
    assert len(functions) > 15
    for name in names:
        assert isinstance(getattr(ss, name, None) or _found(name), type), name


def _found(name: str) -> object:
    from shortstack.comparison import Judging
    from shortstack.machine.clock import Clock
    from shortstack.planning import Chosen
    from shortstack.profiling import Timing

    known = {"Judging": Judging, "Chosen": Chosen, "Clock": Clock, "Timing": Timing}
    return known.get(name) or getattr(builtins, name, None)
