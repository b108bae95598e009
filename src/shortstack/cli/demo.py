"""The embedded example: SmolLM2-135M-Instruct loses a quarter of its layers, is repaired and heals, and is measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shortstack.checkpoint import Checkpoint
from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.options import Report, Seed
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import Route
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import OutputError, VerificationError
from shortstack.evaluation import Perplexity
from shortstack.evaluation.perplexity import measure
from shortstack.healing import Partial, Schedule, heal
from shortstack.machine.device import pick_device
from shortstack.machine.files import save_json
from shortstack.machine.formats import number, size
from shortstack.machine.memory import peak_rss
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Plan, plan
from shortstack.planning.layer_sets import show_layers
from shortstack.profiling.profiler import answer
from shortstack.profiling.speed import Load, Speed, speeds
from shortstack.pruning import prune, verify
from shortstack.pruning.pruner import fits
from shortstack.repairing import repair
from shortstack.scoring import score

PROMPT = "What is the capital of France, and what is the city known for?"
DROP = "25%"
REPAIR_SAMPLES = 64
SCHEDULE = Schedule(epochs=2, lr=1e-3, warmup_steps=5)  # some 35 steps in all, so a rate far above the paper's 1e-5


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    name: str
    layers: int
    parameters: int
    bytes: int
    perplexity: Perplexity
    speed: Speed
    answer: str


@dataclass(frozen=True)
class Demo:
    """All the demo found: the four models, and the perplexity of the paper's tail cut, which was not written."""

    output: Path
    rows: tuple[Row, ...]
    chosen: Plan
    tail: Plan
    tail_perplexity: Perplexity
    verified: bool
    seconds: float
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self) | {"output": str(self.output), "chosen": self.chosen.to_dict(), "tail": self.tail.to_dict()}
        return dict(json.loads(json.dumps(data, default=dict)))


def run(output: str | Path = "demo-out", *, seed: int = 0, progress: Progress = silent) -> Demo:
    """Score, plan, prune, verify, repair, heal and measure; leaves pruned, repaired, healed and demo.json in `output`.

    Raises:
        OutputError: `output` exists.
        CheckpointError: the demo model is not installed and the hub cannot be reached.
    """
    started = time.perf_counter()
    output = Path(output)
    if output.exists():
        raise _exists(output)
    source = Checkpoint.open("demo", progress=progress)
    fits(output / "pruned", source, plan(source.anatomy.layers, metric="reverse", drop=1), copies=3)
    made = _make(output)
    try:
        return _run(source, output, seed, started, progress)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        with suppress(OSError):  # somebody may use them by now
            for parent in made:
                parent.rmdir()
        raise


def _exists(output: Path) -> OutputError:
    return OutputError(
        output,
        expected="an output that does not exist yet",
        found="it exists",
        fix="name another with -o, or remove it",
    )


def _make(output: Path) -> list[Path]:
    """Make the directory, which is ours from then on; the parents that had to be made for it, innermost first."""
    made = [parent for parent in output.absolute().parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        output.mkdir()
    except FileExistsError as error:
        raise _exists(output) from error
    return made


def _run(source: Checkpoint, output: Path, seed: int, started: float, progress: Progress) -> Demo:
    tokenizer = source.tokenizer()
    scores = score(source, Tokens.read("pydoc", tokenizer, seed=seed), metrics=["ppl"], seed=seed, progress=progress)
    chosen, tail = plan(scores, metric="ppl", drop=DROP), plan(scores.layers, metric="reverse", drop=DROP)
    pruned = prune(source, chosen, output / "pruned", scores=scores.to_dict(), progress=progress)
    verified = verify(pruned, against=source, progress=progress)
    if not verified.ok:
        raise VerificationError(
            output / "pruned",
            expected="a checkpoint that computes what the source does without those layers",
            found=str(verified.to_dict()["checks"]),
            fix="open an issue with this message",
        )
    fit = Tokens.read("pydoc", tokenizer, samples=REPAIR_SAMPLES, seed=seed)
    found = repair(source, frozenset(chosen.removed), fit, progress=progress)
    repaired = prune(source, chosen, output / "repaired", repair=found, progress=progress)
    heal(
        repaired,
        output / "healed",
        data="pydoc",
        method=Partial(last=3),
        schedule=replace(SCHEDULE, seed=seed),
        progress=progress,
    )
    healed = Checkpoint.open(output / "healed")
    models = {"unpruned": source, "pruned": pruned, "repaired": repaired, "healed": healed}
    rows, tail_perplexity = _measure(models, frozenset(tail.removed), progress)
    result = Demo(
        output, rows, chosen, tail, tail_perplexity, verified.ok, round(time.perf_counter() - started, 1), peak_rss()
    )
    save_json(output / "demo.json", result.to_dict())
    return result


def _measure(
    checkpoints: Mapping[str, Checkpoint], tail: Route, progress: Progress
) -> tuple[tuple[Row, ...], Perplexity]:
    source = checkpoints["unpruned"]
    tokenizer, device = source.tokenizer(), pick_device()
    tokens = Tokens.read("pydoc", tokenizer, samples=None, length=512, held_out=True)
    dtype = arithmetic("auto", source, device)
    decoders = {name: Decoder.load(checkpoint, dtype=dtype, device=device) for name, checkpoint in checkpoints.items()}
    found = speeds([decoder.model for decoder in decoders.values()], Load(), progress=progress)
    rows = tuple(
        Row(
            name,
            checkpoint.anatomy.layers,
            checkpoint.parameters,
            sum(path.stat().st_size for path in checkpoint.shards),
            measure(decoders[name], tokens, progress=progress),
            speed,
            answer(decoders[name].model, tokenizer, PROMPT),
        )
        for (name, checkpoint), speed in zip(checkpoints.items(), found, strict=True)
    )
    return rows, measure(decoders["unpruned"], tokens, route=tail, progress=progress)


def show(demo: Demo) -> None:
    """The table, the second plan, and the answers."""
    base = demo.rows[0]
    console.show_table(
        f"SmolLM2-135M-Instruct without layers {show_layers(demo.chosen.removed)}, chosen by measured loss",
        ("", *(row.name for row in demo.rows)),
        [
            ("layers", *(str(row.layers) for row in demo.rows)),
            ("parameters", *(f"{row.parameters / 1e6:.1f} M" for row in demo.rows)),
            ("bytes on disk (bf16)", *(size(row.bytes) for row in demo.rows)),
            ("held-out perplexity", *(number(row.perplexity.value) for row in demo.rows)),
            ("decode, tokens per second", *(f"{row.speed.decode_tokens_per_s:.1f}" for row in demo.rows)),
        ],
    )
    print(
        f"\nPerplexity is of {base.perplexity.tokens:,} tokens. Second plan, the paper's tail cut (layers "
        f"{show_layers(demo.tail.removed)}), before healing: perplexity {number(demo.tail_perplexity.value)} on the "
        "same tokens. On this model the last layers cannot simply go."
    )
    print(f"\nPrompt: {PROMPT}")
    for row in demo.rows:
        print(f"\n{row.name}:\n  " + row.answer.replace("\n", "\n  "))
    print(
        f"\nThe pruned checkpoint's logits are equal to the source without those layers. {demo.seconds:.0f} s, "
        f"{size(demo.peak_rss_bytes)} of memory at most."
    )
    print(f'{demo.output}/healed opens with AutoModelForCausalLM.from_pretrained("{demo.output}/healed").')


@verb()
def demo(
    report: Report,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the three checkpoints and demo.json.")
    ] = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """Cut, heal and measure a small model that comes along.

    SmolLM2-135M-Instruct loses a quarter of its layers.
    """

    with report.bars() as progress:
        result = run(output, seed=seed, progress=progress)
    if report.json:
        return console.show_json(result.to_dict())
    show(result)
    report.say("shortstack prune MODEL --drop 25% -o pruned, with a model directory or hub id of yours")
    return None
