"""The catalogue of healing methods: what each trains, which options it knows, and where it lives.

Naming one imports no torch; loading it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from shortstack.errors import InputError, parameter

LAST = 3  # of the layers: the paper's best
PLACED = ("last", "layers", "near_cut", "head", "untie_head")
ADAPTED = ("rank", "alpha", "dropout", "targets", *PLACED)
LIBRARIES = {"peft": ("for adapters", "lora"), "bitsandbytes": ("for 4-bit weights", "quant")}  # why, and the extra


@dataclass(frozen=True)
class Method:
    """A way to heal; `home` is its class, as module:name inside shortstack.healing.

    options: those of `heal` that it knows. needs: libraries that are not everywhere. last: how many layers at the end train
    where none are named; None is all.
    """

    name: str
    trains: str
    paper: str
    home: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    last: int | None = None

    def check(self) -> None:
        """Say what is not installed, before minutes of other work.

        Raises:
            InputError: a library is missing.
        """
        for library in self.needs:
            if find_spec(library) is None:
                why, extra = LIBRARIES[library]
                raise InputError(
                    parameter("method", self.name),
                    expected=f"{library}, {why}",
                    found="none installed",
                    fix=f"pip install 'shortstack[{extra}]'",
                )

    def check_options(self, given: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> None:
        """Refuse options that the method does not know, unless they are as usual.

        Raises:
            InputError: the first of them.
        """
        for name, value in given.items():
            if name not in self.options and (usual is None or value != usual[name]):
                raise InputError(
                    parameter(name),
                    expected=f"an option that {parameter('method', self.name)} knows",
                    found=f"{value} beside it",
                    fix="leave it out, or name another method",
                )

    def load(self) -> Any:
        """The class that runs the method."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"shortstack.healing.{module}"), name)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "partial",
            "the last k layers, the final norm, and the head unless it is tied",
            "arXiv 2411.15558, section 4.2",
            "partial:Partial",
            PLACED,
            last=LAST,
        ),
        Method(
            "lora",
            "low-rank adapters in every layer, merged at the end",
            "arXiv 2106.09685",
            "lora:Lora",
            ADAPTED,
            ("peft",),
        ),
        Method(
            "rslora", "the same, scaled by the root of the rank", "arXiv 2312.03732", "lora:RsLora", ADAPTED, ("peft",)
        ),
        Method(
            "dora", "the same, with a trained length for each row", "arXiv 2402.09353", "lora:DoRA", ADAPTED, ("peft",)
        ),
        Method(
            "qlora",
            "low-rank adapters beside matrices held in 4 bits",
            "arXiv 2305.14314",
            "lora:QLora",
            ADAPTED,
            ("peft", "bitsandbytes"),
        ),
        Method("full", "every weight", "-", "full:Full"),
    )
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(
            parameter("method"),
            expected=f"one of {', '.join(METHODS)}",
            found=repr(name),
            fix="`shortstack ls methods` explains each",
        )
    return METHODS[name]


def check_adapter(*, rank: int, alpha: float, dropout: float, last: int | None) -> None:
    """Say what is wrong with an adapter's numbers.

    Raises:
        InputError: the first that is out of its range.
    """
    for name, value, fits, expected, fix in (
        (parameter("rank"), rank, rank >= 1, "at least 1", f"write {parameter('rank', 8)}"),
        (parameter("alpha"), alpha, 0 < alpha < float("inf"), "a number above 0", f"write {parameter('alpha', 16)}"),
        (
            parameter("dropout"),
            dropout,
            0 <= dropout < 1,
            "0 up to, but not, 1",
            f"write {parameter('dropout', '0.05')}",
        ),
        (parameter("last"), last, last != 0, "at least one layer for adapters to be in", "leave it out for all layers"),
    ):
        if not fits:
            raise InputError(name, expected=expected, found=str(value), fix=fix)
