"""lm-evaluation-harness on vLLM, which is no extra of shortstack."""

from __future__ import annotations

from importlib.metadata import version

from lm_eval.models.vllm_causallms import VLLM

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, one_line
from shortstack.evaluation.harness import SEED, hushed
from shortstack.evaluation.harness_model import Quiet

VERSION = version("vllm")


class VllmModel(Quiet, VLLM):  # type: ignore[misc]  # lm-eval is untyped here
    """The harness's model on vLLM, which reads the checkpoint's files itself."""

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: str, batch_size: int | None, max_length: int | None, seed: int
    ) -> None:
        """Start the engine; batch_size: None leaves it to vLLM."""
        try:
            with hushed():
                super().__init__(
                    pretrained=str(checkpoint.directory),
                    dtype=dtype,
                    trust_remote_code=checkpoint.trust_remote_code,
                    batch_size=batch_size or "auto",
                    max_length=max_length,
                    seed=SEED + seed,
                )
        except (RuntimeError, ValueError) as error:  # what vLLM raises for a model or memory it cannot use
            raise InputError(
                one_line(error),
                expected=f"an engine that starts on {checkpoint.directory}",
                fix="ask for a smaller max_length where memory is short, or leave backend out",
                option="backend",
            ) from error
        self.computed_in = dtype
