"""Who answers tasks: lm-evaluation-harness with shortstack's own model, or with vLLM; both are imported when asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from shortstack.errors import InputError, parameter
from shortstack.machine.options import check_installed

OWN, VLLM = "shortstack", "vllm"
BACKENDS = (OWN, VLLM)


def load_harness(name: str = "harness") -> ModuleType:
    """The module that runs lm-evaluation-harness, or `harness_model`, with the model that it asks."""
    check_installed("lm_eval", "eval", where=parameter("tasks"), why="for tasks")
    return import_module(f"shortstack.evaluation.{name}")


def load_vllm() -> ModuleType:
    """The module that runs vLLM."""
    try:
        return import_module("shortstack.evaluation.vllm")
    except ImportError as error:
        raise InputError(
            parameter("backend", VLLM),
            expected="vLLM, which brings a torch of its own",
            found=str(error),
            fix=f"install shortstack beside vLLM (its page says how), or leave {parameter('backend')} out",
        ) from error
