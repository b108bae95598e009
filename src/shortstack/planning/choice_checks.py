"""What choose() refuses before it computes anything, for who only asks; and the memory that choosing takes."""

from __future__ import annotations

from shortstack.checkpoint import Checkpoint
from shortstack.data import CalibrationText, Tokens
from shortstack.decoder import Decoder, calibration_tokens
from shortstack.decoder.requirements import requirements
from shortstack.machine.device import Compute
from shortstack.machine.memory import Requirements
from shortstack.planning.choice import Choice
from shortstack.planning.chooser import choose, scored_window, sized_choice
from shortstack.planning.measured import check_blocks, check_samples, check_step
from shortstack.planning.plans import BLOCKS, Plan
from shortstack.repairing.cut_families import check_windows
from shortstack.scoring.gradients import check_differentiable
from shortstack.scoring.scorer import check_window, enough_tokens


def check_choice(
    checkpoint: Checkpoint, choice: Choice, text: CalibrationText, compute: Compute
) -> tuple[Plan, Requirements]:
    """A plan as large as the one that choose() would give, or that one where nothing is computed for it.

    What the model would write itself to be calibrated on is not written.
    """
    sized, layers = sized_choice(checkpoint, choice), checkpoint.anatomy.layers
    if not sized.measures and not sized.needs_text:
        return choose(checkpoint, choice, compute=compute).plan, Requirements()
    tokens = calibration_tokens(checkpoint, text, compute=compute, dry_run=True)
    _check_tokens(sized, tokens, layers)
    decoder = Decoder.outline(checkpoint, compute)
    if decoder:
        _check_structure(sized, decoder)
    streams = layers + 1 if sized.measures or sized.by.feed != "hidden" else 1  # of each cut that is compared
    needed = requirements(checkpoint, compute, tokens=tokens.ids.numel(), streams=streams, in_turns=True)
    return sized.like(layers), needed


def _check_tokens(choice: Choice, tokens: Tokens, layers: int) -> None:
    """Refuse windows that are too few, or sizes that no metric scores."""
    if not choice.measures:
        check_window(scored_window(choice, layers), layers, [choice.by])
        enough_tokens(tokens, [choice.by])
    elif choice.how.name == "step":
        check_step(choice.step or 1, choice.removal(layers))
    else:
        check_samples(tokens)


def _check_structure(choice: Choice, decoder: Decoder) -> None:
    """Refuse layers that cannot be measured as the choice wants it."""
    decoder.check_direct()
    if choice.how.name == BLOCKS:
        check_blocks(decoder)
    elif not choice.measures and choice.by.feed == "repair":
        check_windows(decoder)
    elif choice.how.by_metric and choice.by.feed == "gradient":
        check_differentiable(decoder)
