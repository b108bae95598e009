"""evaluate(): held-out perplexity of a checkpoint, by the same walk and BOS rule as scoring; what it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.collapse import Collapse, check_collapse
from shortstack.errors import InputError
from shortstack.losses import next_token_losses
from shortstack.metrics import checked, in_float64
from shortstack.metrics import perplexity as value
from shortstack.probes import Probed, probes, run_probes
from shortstack.progress import Progress, silent
from shortstack.tokens import Tokens
from shortstack.walk import UNPRUNED, Decoder, Route


@dataclass(frozen=True)
class Perplexity:
    """exp(mean next-token loss). tokens: how many were predicted; standard error of the loss over windows beside it."""

    value: float
    tokens: int
    loss: float
    loss_stderr: float
    windows: Mapping[str, Any]
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "tokens": self.tokens,
            "loss": self.loss,
            "loss_stderr": self.loss_stderr,
            "windows": dict(self.windows),
            "dtype": self.dtype,
        }


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one checkpoint."""

    model: str
    perplexity: Mapping[str, Perplexity]
    probes: Mapping[str, Probed] = field(default_factory=dict)
    collapse: Collapse | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "perplexity": {name: found.to_dict() for name, found in self.perplexity.items()},
            "probes": {name: found.to_dict() for name, found in self.probes.items()},
            "collapse": self.collapse.to_dict() if self.collapse else None,
        }


def evaluate(
    checkpoint: Checkpoint,
    *,
    perplexity: Sequence[str] | str = ("pydoc",),
    length: int = 512,
    samples: int | None = None,
    probe_items: int = 0,
    collapse: bool | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity on each text: consecutive windows of `length` tokens, all of them, or `samples` drawn by seed.

    Of `pydoc` only the held-out part is read. probe_items: so many items of each generation probe, drawn by seed. collapse:
    whether to check what the model writes freely; None: where shortstack cut or healed it. dtype "auto": bf16 where
    checkpoint and device have it, else float32.

    Raises:
        DataError: a text cannot be read or is shorter than one window.
    """
    sources = [name.strip() for name in perplexity.split(",")] if isinstance(perplexity, str) else perplexity
    if not sources or not all(sources):
        raise InputError("--perplexity", expected="a text, or several with commas", found="none", fix="name one: pydoc")
    items = probes(seed, probe_items) if probe_items else ()
    _, tokenizer = checkpoint.anatomy, checkpoint.tokenizer()  # what is no decoder is said before what it lacks
    texts = {
        source: Tokens.read(source, tokenizer, samples=samples, length=length, seed=seed, held_out=True)
        for source in sources
    }
    decoder = Decoder.open(checkpoint, dtype=dtype, device=device, stream=False)  # batch after batch, every layer
    found = {source: measure(decoder, tokens, progress=progress) for source, tokens in texts.items()}
    if collapse is None:
        collapse = checkpoint.record.get("verb") in {"prune", "heal"}
    return Evaluation(
        checkpoint.source,
        found,
        run_probes(decoder.model, tokenizer, items, progress=progress),
        check_collapse(decoder.model, tokenizer, progress=progress) if collapse else None,
    )


@torch.no_grad()
def measure(decoder: Decoder, tokens: Tokens, *, route: Route = UNPRUNED, progress: Progress = silent) -> Perplexity:
    """Perplexity of a loaded model run without the layers of `route`; each window's first token is not predicted."""
    batches = tokens.ids.split(max(1, 1024 // tokens.ids.shape[1]))
    losses = []
    for number, batch in enumerate(batches, start=1):
        ids = batch.to(decoder.device)
        losses.append(in_float64(next_token_losses(decoder, ids, decoder.walk(ids, [route])[route])).cpu())
        progress("measuring perplexity", number, len(batches))
    table = torch.cat(losses)
    mean, windows = checked(float(table.mean()), f"loss on {tokens.source}"), table.mean(dim=1)
    stderr = float(windows.std() / math.sqrt(len(windows))) if len(windows) > 1 else math.nan
    return Perplexity(value(mean), table.numel(), mean, stderr, tokens.record(), decoder.dtype)
