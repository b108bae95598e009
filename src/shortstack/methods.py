"""The catalogue of healing methods: what each trains and where it lives. Naming one imports no torch; loading it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from shortstack.errors import InputError


@dataclass(frozen=True)
class Method:
    """A way to heal; `home` is its class, as module:name inside shortstack.healing; adapters need peft (extra `lora`)."""

    name: str
    trains: str
    paper: str
    home: str

    def check(self) -> None:
        """Say what is not installed, before minutes of other work.

        Raises:
            InputError: adapters without peft.
        """
        if self.home.startswith("lora:") and find_spec("peft") is None:
            raise InputError(
                f"--method {self.name}",
                expected="peft, for adapters",
                found="none installed",
                fix="pip install 'shortstack[lora]'",
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
        ),
        Method("lora", "low-rank adapters in every layer, merged at the end", "arXiv 2106.09685", "lora:Lora"),
        Method("rslora", "the same, scaled by the root of the rank", "arXiv 2312.03732", "lora:RsLora"),
        Method("dora", "the same, with a trained length for each row", "arXiv 2402.09353", "lora:DoRA"),
        Method("qlora", "low-rank adapters beside matrices held in 4 bits", "arXiv 2305.14314", "lora:QLora"),
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
            "--method",
            expected=f"one of {', '.join(METHODS)}",
            found=repr(name),
            fix="`shortstack ls methods` explains each",
        )
    return METHODS[name]
