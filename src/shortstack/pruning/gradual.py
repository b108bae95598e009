"""PruneCallback: layers leave a model in steps while a Trainer of transformers, or one that is built on it, trains it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shortstack.errors import InputError, PlanError
from shortstack.planning import Chosen, Plan
from shortstack.pruning.in_memory import prune_layers


class PruneCallback(TrainerCallback):  # type: ignore[misc]  # it has no types
    """Removes the layers of a plan in equal parts, one before each of some steps of training.

    >>> PruneCallback(choose(32, Choice(layers="20-27")), at=[0, 100, 200, 300])  # two layers at a time  # doctest: +SKIP

    at: the numbers of the steps, counted from 0. The last layers leave first. The optimizer forgets what it knew of
    removed weights. Training that goes on from a state starts with the model that is saved with it, which has lost layers
    already; of the whole model torch refuses the optimizer's state by a ValueError, before a Trainer asks any callback.
    Several processes (DDP, FSDP, DeepSpeed) are refused.
    """

    def __init__(self, plan: Plan | Chosen, at: Sequence[int]) -> None:
        """Share the plan's layers out to the steps at which they leave.

        Raises:
            PlanError: there are more steps than layers, or none.
        """
        plan = plan.plan if isinstance(plan, Chosen) else plan
        leaving = plan.removed[::-1]
        if not 0 < len(set(at)) <= len(leaving):
            expected, actual = f"1 to {len(leaving)} steps at which layers leave", f"{list(at)}"
            raise PlanError(actual, expected=expected, fix="name fewer steps, or more layers", where="at")
        self.layers, self.left = plan.layers, list(range(plan.layers))
        self.parts = dict(zip(sorted(set(at)), _parts(leaving, len(set(at))), strict=True))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> TrainerControl:
        """Count as gone the layers that left before the state that training goes on from; in a new training none.

        Raises:
            PlanError: the model is not as deep as the plan's, or as the one that was saved with the state; or layers are to
                leave at a step that is never taken.
        """
        depth = _depth(others["model"])
        if state.global_step or depth != len(
            self.left
        ):  # else it begins anew with what is left, as where memory ran out
            gone = {layer for step, layers in self.parts.items() if step < state.global_step for layer in layers}
            self.left = [layer for layer in range(self.layers) if layer not in gone]
            _check_depth(depth, len(self.left), state.global_step)
        if max(self.parts) >= state.max_steps:
            expected, actual = f"steps below {state.max_steps}, which is how many there are", f"{max(self.parts)}"
            raise PlanError(actual, expected=expected, fix="name earlier steps, or train longer", where="at")
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> TrainerControl:
        for step, layers in self.parts.items():
            if step <= state.global_step and set(layers) <= set(self.left):
                _check_whole(args)
                self._remove(layers, others["model"], others.get("optimizer"))
        return control

    def _remove(self, layers: Sequence[int], model: nn.Module, optimizer: Optimizer | None) -> None:
        removed = tuple(sorted(self.left.index(layer) for layer in layers))
        prune_layers(model, Plan(len(self.left), removed, "gradual"))
        self.left = [layer for layer in self.left if layer not in layers]
        if optimizer is not None:
            forget(optimizer, model)


def forget(optimizer: Optimizer, model: nn.Module) -> None:
    """Take from an optimizer the parameters that a model no longer has, and what it remembers of them."""
    staying = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        gone = [parameter for parameter in group["params"] if id(parameter) not in staying]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in staying]
        for parameter in gone:
            parameter.grad = None
            optimizer.state.pop(parameter, None)


def _parts(layers: Sequence[int], count: int) -> list[list[int]]:
    """Return the layers in so many parts, the first of them one larger where that does not go even.

    >>> _parts([7, 6, 5, 4, 3], 2)
    [[7, 6, 5], [4, 3]]
    """
    size, larger = divmod(len(layers), count)
    ends = [size * part + min(part, larger) for part in range(count + 1)]
    return [list(layers[start:end]) for start, end in pairwise(ends)]


def _depth(model: Any) -> int | None:
    """Return how many layers a model's config says it has; None where it says that by a name of its own."""
    return getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)


def _check_depth(depth: int | None, layers: int, step: int) -> None:
    """Refuse a model without as many layers. step: after which the state was saved that training goes on from, or 0."""
    if depth not in (None, layers):
        which, fix = "the model of the plan", "train that one, or leave the callback out"
        if step:
            which = f"the one that was saved after step {step}"
            fix = "start with that one: from_pretrained() of the folder that training goes on from"
        raise PlanError(depth, expected=f"{layers} layers, as {which} has", fix=fix, where="the model")


def _check_whole(args: TrainingArguments) -> None:
    """Refuse several processes, which have agreed on the parameters that they share."""
    if args.world_size > 1:
        actual, fix = f"{args.world_size}", "train in one process, or prune first and then train in many"
        raise InputError(actual, expected="one process", fix=fix, where="the trainer")
