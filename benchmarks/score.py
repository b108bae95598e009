"""How long `score` takes beside the ways others score layers, on SmolLM2-135M, fp32, the same tokens (pydoc, 10 x 128).

Contenders, in turn, several rounds, in one process; every one of them loads the model itself, on the clock:

    ppl       shortstack.score(metrics=["ppl"]): the loss without each layer, and the whole model's, in one walk
    bi+ppl    shortstack.score(metrics=["bi", "ppl"]): what the second metric adds
    rebuild   the reference authors' way: for each layer a new model of N - 1 layers by from_config, weights copied into
              it, one full forward of all tokens, fp32 cross-entropy over the full logits
    skip      the same N full forwards and losses in one model whose layer list leaves the layer out: no rebuilding

`rebuild` and `skip` score N models; `ppl` scores those N and the whole model besides.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import harness
from harness import median, ratios, spread, table, verdict
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.machine.device import Compute
from shortstack.scoring import score

SPEED_AIM, LOSS_AIM, TWO_METRICS_AIM = 2.0, 1e-5, 1.1
Losses = list[float]


def load(checkpoint: Checkpoint) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)
    return model.eval()


def full_loss(model: PreTrainedModel, ids: Tensor) -> float:
    """Mean next-token loss from the full fp32 logits of all tokens at once."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


def without(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """A new model of one layer less, with the others' weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers -= 1
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for index, kind in enumerate(config.layer_types) if index != layer]
    shorter: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = model.state_dict()
    for name, target in shorter.state_dict().items():
        target.copy_(weights[_original_name(name, layer)])
    return shorter.eval()


def _original_name(name: str, removed: int) -> str:
    parts = name.split(".")
    if name.startswith("model.layers.") and int(parts[2]) >= removed:
        parts[2] = str(int(parts[2]) + 1)
    return ".".join(parts)


@torch.no_grad()
def by_rebuilding(checkpoint: Checkpoint, tokens: Tokens) -> Losses:
    model = load(checkpoint)
    return [full_loss(without(model, layer), tokens.ids) for layer in range(model.config.num_hidden_layers)]


@torch.no_grad()
def by_skipping(checkpoint: Checkpoint, tokens: Tokens) -> Losses:
    model = load(checkpoint)
    layers, losses = list(model.model.layers), []
    for left_out in range(len(layers)):
        kept = [layer for index, layer in enumerate(layers) if index != left_out]
        model.model.layers, model.config.num_hidden_layers = nn.ModuleList(kept), len(kept)
        losses.append(full_loss(model, tokens.ids))
    return losses


def by_score(*metrics: str) -> Callable[[Checkpoint, Tokens], Losses]:
    def run(checkpoint: Checkpoint, tokens: Tokens) -> Losses:
        found = score(checkpoint, tokens, metrics=metrics, compute=Compute(dtype="float32", device="cpu"))
        return [math.log(perplexity) for perplexity in found.scores["ppl"]]

    return run


CONTENDERS: dict[str, Callable[[Checkpoint, Tokens], Losses]] = {
    "ppl": by_score("ppl"),
    "bi+ppl": by_score("bi", "ppl"),
    "rebuild": by_rebuilding,
    "skip": by_skipping,
}


Clocks = dict[str, list[float]]


def contest(checkpoint: Checkpoint, tokens: Tokens, rounds: int) -> tuple[Clocks, Clocks, dict[str, Losses]]:
    """Wall and CPU seconds of every run, and each contender's losses (of its last run)."""
    seconds: Clocks = {name: [] for name in CONTENDERS}
    cpu: Clocks = {name: [] for name in CONTENDERS}
    losses: dict[str, Losses] = {}
    for turn in range(rounds):
        for name in harness.rotated(list(CONTENDERS), turn):
            started, used = time.perf_counter(), time.process_time()
            losses[name] = CONTENDERS[name](checkpoint, tokens)
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - used)
            print(f"  {name:8} {seconds[name][-1]:7.2f} s  {cpu[name][-1]:7.2f} s of CPU", file=sys.stderr)
    return seconds, cpu, losses


def loading_seconds(checkpoint: Checkpoint, rounds: int) -> list[float]:
    """How much of every contender's time is opening the model."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        load(checkpoint)
        found.append(time.perf_counter() - started)
    return found


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def summary(seconds: Clocks, losses: dict[str, Losses]) -> dict[str, Any]:
    ours = seconds["ppl"]
    return {
        "rebuild_over_ppl": ratios(seconds["rebuild"], ours),
        "skip_over_ppl": ratios(seconds["skip"], ours),
        "bi_ppl_over_ppl": ratios(seconds["bi+ppl"], ours),
        "difference_from_rebuild": largest_difference(losses["ppl"], losses["rebuild"]),
        "difference_from_skip": largest_difference(losses["ppl"], losses["skip"]),
        "difference_of_bi_ppl": largest_difference(losses["ppl"], losses["bi+ppl"]),
    }


def sections(seconds: Clocks, cpu: Clocks, loading: list[float], found: dict[str, Any]) -> list[str]:
    differences = {
        "ppl": "",
        "bi+ppl": f"{found['difference_of_bi_ppl']:.1e}",
        "rebuild": f"{found['difference_from_rebuild']:.1e}",
        "skip": f"{found['difference_from_skip']:.1e}",
    }
    rows = [
        (name, spread(times), spread(ratios(times, seconds["ppl"])), spread(cpu[name], 1), differences[name])
        for name, times in seconds.items()
    ]
    fast, close = median(found["rebuild_over_ppl"]), found["difference_from_rebuild"]
    both = median(found["bi_ppl_over_ppl"])
    aims = [
        (f"`ppl` at least {SPEED_AIM:g} x as fast as `rebuild`", f"{fast:.2f}", verdict(fast >= SPEED_AIM)),
        (f"losses within {LOSS_AIM:g} of `rebuild`", f"{close:.1e}", verdict(close <= LOSS_AIM)),
        (f"`bi+ppl` at most {TWO_METRICS_AIM:g} x `ppl`", f"{both:.3f}", verdict(both <= TWO_METRICS_AIM)),
    ]
    return [
        table(
            (
                "contender",
                "wall, s: median (range)",
                "over ppl, same round",
                "CPU, s",
                "largest loss difference from ppl",
            ),
            rows,
        ),
        table(("aim", "found", ""), aims),
        f"Loading the model, in every time above: {spread(loading)} s.",
    ]


def main() -> None:
    chosen = harness.parser(__doc__, rounds=5).parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        run(chosen.rounds, smoke=Path(folder) if chosen.smoke else None)


def run(rounds: int, *, smoke: Path | None) -> None:
    """smoke: where a tiny model is made, to see that it runs."""
    checkpoint = Checkpoint.open(harness.tiny(smoke) if smoke else "demo")
    samples, length, rounds = (4, 32, 1) if smoke else (10, 128, rounds)
    tokens = Tokens.read("pydoc", checkpoint.tokenizer(), samples=samples, length=length)
    data: dict[str, Any] = {
        "machine": harness.machine() | {"torch threads": torch.get_num_threads()},
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "model": f"{checkpoint.anatomy.layers} layers, {checkpoint.parameters / 1e6:.1f} M parameters",
        "tokens": tokens.record(),
    }
    with torch.no_grad():
        full_loss(load(checkpoint), tokens.ids)  # kernels are chosen and memory is mapped before any clock runs
    loading = loading_seconds(checkpoint, rounds)
    seconds, cpu, losses = contest(checkpoint, tokens, rounds)
    found = summary(seconds, losses)
    data |= {"seconds": seconds, "cpu_seconds": cpu, "loading_seconds": loading, "losses": losses, **found}
    harness.save("score", data, [__doc__.strip(), *sections(seconds, cpu, loading, found)], smoke=bool(smoke))


if __name__ == "__main__":
    main()
