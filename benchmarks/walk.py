"""One walk beside the loops it replaces: the same losses from full forwards that merely leave layers out.

Two models, both loaded before any clock runs, the same 10 x 128 tokens, the same dtype: SmolLM2-135M, whose tied head weighs
as much as eight layers, and random weights of a Llama of 32 layers with a vocabulary of 2048. In turn, several rounds:

    leave-one-out  the loss without each layer     over  N full forwards, each without one
    windows        the loss without each block of 8  over  N - 7 full forwards, each without one
    greedy         eight layers removed one by one, all others tried each time  over  a full forward for every trial
    all            every metric, taylor and gradient included  over  leave-one-out
    depth-curve    loss and KL of every depth  over  one forward and the norm, head and loss after each layer
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import harness
from harness import median, ratios, spread, table, verdict
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.machine.device import Compute
from shortstack.planning.layer_sets import Removal
from shortstack.planning.measured import stepwise
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec
from shortstack.scoring.metrics import metrics_named

WINDOW = REMOVED = 8
SAMPLES, LENGTH = 10, 128
SMALL_VOCABULARY = LlamaConfig(
    num_hidden_layers=32, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=2048, max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip
Losses = list[float]
Way = Callable[[Decoder, Tensor], Losses]


@dataclass(frozen=True)
class Contest:
    """A quantity measured two ways. aims: the least `other / ours` for each model; or the most `ours / other`."""

    name: str
    ours: Way
    other: Way
    aims: Sequence[float]
    at_most: bool = False

    def ratio(self, ours: Sequence[float], other: Sequence[float]) -> list[float]:
        return ratios(ours, other) if self.at_most else ratios(other, ours)

    def met(self, ratio: float, model: int) -> bool:
        return ratio <= self.aims[model] if self.at_most else ratio >= self.aims[model]


def full_loss(model: PreTrainedModel, ids: Tensor) -> float:
    """Mean next-token loss from the full logits of all tokens at once, in fp32."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


@torch.no_grad()
def loss_without(decoder: Decoder, ids: Tensor, removed: Iterable[int]) -> float:
    """The loss of one full forward through the other layers."""
    model: Any = decoder.model
    layers, gone = model.model.layers, set(removed)
    model.model.layers = nn.ModuleList(layer for index, layer in enumerate(layers) if index not in gone)
    model.config.num_hidden_layers = len(model.model.layers)
    try:
        return full_loss(model, ids)
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, len(layers)


def ppl(decoder: Decoder, ids: Tensor) -> Losses:
    return _logs(Measurement(decoder, Tokens.given(ids), MeasurementSpec([METRICS["ppl"]])).go().scores()["ppl"])


def ppl_by_skipping(decoder: Decoder, ids: Tensor) -> Losses:
    return [loss_without(decoder, ids, [layer]) for layer in range(len(decoder.layers))]


def windows(decoder: Decoder, ids: Tensor) -> Losses:
    spec = MeasurementSpec([METRICS["ppl"]], WINDOW, singles=False)
    return _logs(Measurement(decoder, Tokens.given(ids), spec).go().block_scores()["ppl"])


def windows_by_skipping(decoder: Decoder, ids: Tensor) -> Losses:
    places = range(len(decoder.layers) - WINDOW + 1)
    return [loss_without(decoder, ids, range(place, place + WINDOW)) for place in places]


def greedy(decoder: Decoder, ids: Tensor) -> Losses:
    tokens, everything = Tokens(ids, "pydoc", False, 0), range(len(decoder.layers))
    plan = stepwise(decoder, tokens, Removal(REMOVED, everything, METRICS["ppl"], step=1))
    return [loss_without(decoder, ids, plan.removed)]


def greedy_by_skipping(decoder: Decoder, ids: Tensor) -> Losses:
    gone: list[int] = []
    for _ in range(REMOVED):
        left = [layer for layer in range(len(decoder.layers)) if layer not in gone]
        gone.append(min(left, key=lambda layer: loss_without(decoder, ids, [*gone, layer])))
    return [loss_without(decoder, ids, gone)]


def every_metric(decoder: Decoder, ids: Tensor) -> Losses:
    walked = [metric for metric in metrics_named(["all"]) if metric.needs_text]
    return _logs(Measurement(decoder, Tokens.given(ids), MeasurementSpec(walked)).go().scores()["ppl"])


def depth_curve(decoder: Decoder, ids: Tensor) -> Losses:
    depths = [frozenset(range(kept, len(decoder.layers))) for kept in range(len(decoder.layers), 0, -1)]
    run = Measurement(decoder, Tokens.given(ids), MeasurementSpec([METRICS["kl"]], singles=False, sets=depths)).go()
    return [run.loss(depth) for depth in depths]


@torch.no_grad()
def forward_and_heads(decoder: Decoder, ids: Tensor) -> Losses:
    """One forward that keeps what leaves each layer; then norm, head and loss of each, from full logits."""
    model: Any = decoder.model
    kept: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: kept.append(call[2])) for layer in decoder.layers]
    model.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    found = []
    for hidden in reversed(kept):
        logits = model.lm_head(model.model.norm(hidden)).float()
        found.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())
    return found


def _logs(perplexities: Iterable[float]) -> Losses:
    return [math.log(value) for value in perplexities]


CONTESTS = (
    Contest("leave-one-out", ppl, ppl_by_skipping, (1.5, 1.8)),
    Contest("windows", windows, windows_by_skipping, (1.8, 1.8)),
    Contest("greedy", greedy, greedy_by_skipping, (1.8, 1.8)),
    Contest("all", every_metric, ppl, (1.5, 1.5), at_most=True),
    Contest("depth-curve", depth_curve, forward_and_heads, (1.2, 1.2), at_most=True),
)


def models_in(folder: Path, *, smoke: bool) -> dict[str, Checkpoint]:
    if smoke:
        return {"tiny": Checkpoint.open(harness.tiny(folder))}
    return {"SmolLM2-135M": Checkpoint.open("demo"), "32 layers, vocabulary 2048": small_vocabulary(folder)}


def small_vocabulary(folder: Path) -> Checkpoint:
    torch.manual_seed(0)
    LlamaForCausalLM(SMALL_VOCABULARY).to(torch.bfloat16).save_pretrained(folder)
    return Checkpoint.open(str(folder))


def clocked(way: Way, decoder: Decoder, ids: Tensor) -> tuple[float, Losses]:
    started = time.perf_counter()
    found = way(decoder, ids)
    return time.perf_counter() - started, found


def held(contest: Contest, decoder: Decoder, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of both sides in every round, and how far their losses are apart."""
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    losses: dict[str, Losses] = {}
    for turn in range(rounds):
        for side in harness.rotated(list(seconds), turn):
            took, losses[side] = clocked(getattr(contest, side), decoder, ids)
            seconds[side].append(took)
            print(f"  {contest.name:14} {side:6} {took:7.2f} s", file=sys.stderr)
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["other"], strict=True))
    return {**seconds, "ratio": contest.ratio(seconds["ours"], seconds["other"]), "largest_loss_difference": apart}


def row(contest: Contest, found: dict[str, Any], model: int) -> tuple[str, ...]:
    aim = f"{'at most' if contest.at_most else 'at least'} {contest.aims[model]:g}"
    met = verdict(contest.met(median(found["ratio"]), model))
    return (
        contest.name,
        spread(found["ours"]),
        spread(found["other"]),
        spread(found["ratio"]),
        f"{aim}: {met}",
        f"{found['largest_loss_difference']:.1e}",
    )


def main() -> None:
    options = harness.parser(__doc__, rounds=3)
    options.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    chosen = options.parse_args()
    disable_progress_bar()
    data: dict[str, Any] = {
        "machine": harness.machine() | {"torch threads": torch.get_num_threads()},
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
    }
    heading = ("contest", "ours, s: median (range)", "other, s", "ratio", "aim", "losses apart by")
    sections = [__doc__.strip()]
    with tempfile.TemporaryDirectory() as folder:
        models, rounds = models_in(Path(folder), smoke=chosen.smoke), 1 if chosen.smoke else chosen.rounds
        first = next(iter(models.values()))
        ids = Tokens.read("pydoc", first.tokenizer(), samples=SAMPLES, length=LENGTH).ids
        for number, (name, checkpoint) in enumerate(models.items()):
            decoder = Decoder.open(checkpoint, Compute(dtype=chosen.dtype, device="cpu"))
            some = ids % SMALL_VOCABULARY.vocab_size if number else ids
            ppl(decoder, some[:2]), ppl_by_skipping(decoder, some[:2])  # kernels are chosen before any clock runs
            data[name] = {contest.name: held(contest, decoder, some, rounds) for contest in CONTESTS}
            rows = [row(contest, data[name][contest.name], number) for contest in CONTESTS]
            sections += [f"## {name}, {chosen.dtype}", table(heading, rows)]
    harness.save(f"walk_{chosen.dtype}", data, sections, smoke=chosen.smoke)


if __name__ == "__main__":
    main()
