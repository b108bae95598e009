"""Options for selecting layers, and how many layers that removes. Free of torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shortstack.checkpoint.sizes import Sizes
from shortstack.errors import PlanError
from shortstack.machine.formats import BYTES, PARAMETERS, count_in, size
from shortstack.machine.options import Amount, OneOf, options
from shortstack.planning.layer_sets import Removal, check_pace, parse_drop, parse_layers
from shortstack.planning.strategies import STRATEGIES, Strategy
from shortstack.scoring.metrics import METRICS, Metric

CANDIDATES = 5  # sets that are repaired whole, beside the best single block
GOALS = ("layers", "drop", "target_params", "target_size")
UNITS = {"target_params": PARAMETERS, "target_size": BYTES}  # in the order of Sizes.of()


@options
class Selection:
    """Which layers to remove, or how many and how they are selected."""

    metric: Annotated[str, OneOf(METRICS)] | None = Field(
        None, description=f"Metric to select by: {', '.join(METRICS)}. Default: ppl."
    )
    drop: Amount | None = Field(
        None, description="How much to remove: 25% of the layers (rounded half up), or a count."
    )
    target_params: str | None = Field(
        None, description="Remove the fewest layers that bring the model down to this many parameters: 6B, 350M."
    )
    target_size: str | None = Field(
        None, description="Remove the fewest layers that bring the weights down to this size: 4GB."
    )
    layers: str | None = Field(None, description="Remove exactly these: 22-29,3 (from 0, ranges inclusive).")
    step: int | None = Field(None, ge=1, description="Remove this many layers at a time, rescoring after each removal.")
    strategy: Annotated[str, OneOf(STRATEGIES)] | None = Field(
        None, description=f"How layers are picked: {', '.join(STRATEGIES)}. Default: lowest."
    )
    candidates: int = Field(
        CANDIDATES,
        ge=0,
        description="Layer sets that repaired-blocks repairs and compares with the best single block; 0: none.",
    )
    keep_first: int = Field(0, ge=0, description="Never remove the first n layers.")
    keep_last: int = Field(0, ge=0, description="Never remove the last n layers.")

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        given = [name for name in GOALS if getattr(self, name) is not None]
        how = [name for name in ("metric", "strategy", "step") if getattr(self, name) is not None]
        if len(given) > 1:
            raise PlanError(f"it cannot be combined with {given[1]}; give one of them", option=given[0])
        if self.layers is not None and how:
            raise PlanError(f"layers that are named are not selected by {how[0]}; remove one", option="layers")
        if self.step is not None and self.strategy not in (None, "step"):
            raise PlanError(f"it cannot be combined with step {self.step}; remove one", option="strategy")
        if self.metric is not None and not self.how.by_metric:
            raise PlanError(f"{self.how.name} has a measure of its own; remove metric", option="strategy")
        if self.candidates != CANDIDATES and not self.how.repairs:
            raise PlanError(f"the strategy {self.how.name} repairs no candidates; remove it", option="candidates")

    @property
    def by(self) -> Metric:
        """The metric, by default ppl."""
        return METRICS[self.metric or "ppl"]

    @property
    def how(self) -> Strategy:
        """The strategy, by default `step` with a step and else `lowest`."""
        return STRATEGIES[self.strategy or ("lowest" if self.step is None else "step")]

    @property
    def needs_text(self) -> bool:
        """Whether the model is run on text."""
        return self.layers is None and (self.how.feed == "model" or self.by.needs_text)


def removal_of(selection: Selection, metric: Metric, layers: int, sizes: Sizes | None, seed: int) -> Removal:
    """Return how many layers of a model to remove, and which may be. sizes: None where no target size is asked for."""
    allowed = range(selection.keep_first, layers - selection.keep_last)
    amount = layers_to_remove(selection, layers, sizes)
    if amount > len(allowed):
        kept = f"the first {selection.keep_first} and last {selection.keep_last}"
        raise PlanError(f"{amount} layers cannot be removed of {layers} with {kept} kept; remove fewer", option="drop")
    step = selection.step or 1
    if selection.how.feed == "model":
        check_pace(step, amount)
    return Removal(amount, allowed, metric, step, seed, selection.candidates)


def layers_to_remove(selection: Selection, layers: int, sizes: Sizes | None) -> int:
    """Count the layers to remove of so many; for a target size the fewest without which the rest fits, whichever they are.

    Raises:
        PlanError: no goal is given, or no cut meets it.
    """
    if selection.layers is not None:
        return len(parse_layers(selection.layers))
    if selection.drop is not None:
        return parse_drop(selection.drop, layers)
    name = next((name for name in UNITS if getattr(selection, name) is not None), None)
    if name is None:
        raise PlanError("give how much to remove, such as 25%", option="drop")
    if sizes is None:
        raise PlanError("the scores do not say how large their model is; score it again", option=name)
    text, place = getattr(selection, name), [*UNITS].index(name)
    most = count_in(UNITS[name], text)
    if not most:
        example = "4GB, with a unit" if name == "target_size" else "6B or 350M"
        raise PlanError(f"{text!r} is no size; write it like {example}", option=name)
    weights = (sizes.layer_parameters, sizes.layer_bytes)[place]
    allowed = range(selection.keep_first, layers - selection.keep_last)
    lightest = sorted(allowed, key=lambda layer: weights[layer])
    shown = size if name == "target_size" else "{:,}".format
    whole = sizes.of(range(layers))[place]
    if most >= whole:
        raise PlanError(f"{shown(most)} is not below the model's {shown(whole)}; give less", option=name)
    left = [whole]
    for count in range(1, min(len(lightest), layers - 1) + 1):
        gone = {*lightest[:count]}
        left.append(sizes.of([layer for layer in range(layers) if layer not in gone])[place])
        if left[-1] <= most:
            return count
    raise PlanError(f"{shown(most)} is below {shown(left[-1])}, which the largest cut leaves; give more", option=name)
