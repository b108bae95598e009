"""How much of SmolLM2 comes back after 8 of its 30 layers are gone, in a quarter of an hour on two cores?

    python studies/best.py C4_JSONL WIKI_VALID WIKI_TEST DATA_DIR

The layers are searched for, the cut is repaired, and each candidate heals from there on the same samples of C4 and pydoc,
one epoch. The candidate with the lowest loss on validation text (held-out pydoc and WIKI_VALID, none of it trained on) is
chosen; recipes/best.yaml is that one. It is judged on what took no part in the choice: WIKI_TEST, and the first documents
of tasks read from DATA_DIR (laid out as docs/evaluate.md says), those of the quick trials apart from the rest. Writes
studies/best.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

import shortstack as ss
from healing import mixed
from shortstack.evaluation import measure
from shortstack.planning import show_layers
from shortstack.walk import Decoder

SAMPLES, LENGTH = 1000, 128
TASKS = ("piqa", "arc_easy", "hellaswag", "lambada_openai")
FIRST, LIMIT = 200, 700  # documents of the quick trials, and all that are asked
COURSE = ss.Schedule(epochs=1, batch_size=16, decay="cosine", warmup_steps=10)
CANDIDATES: Mapping[str, tuple[Any, str, float]] = {
    "lora, sft": (ss.Lora(), "sft", 2e-3),
    "full, sft": (ss.Full(), "sft", 3e-4),
    "full, distill": (ss.Full(), "distill", 3e-4),
}


class Line:
    """Search, repair and heal one model, and how long each took."""

    def __init__(self, folder: Path, c4: str) -> None:
        self.folder, self.seconds = folder, dict[str, float]()
        self.source = ss.Checkpoint.open("demo")
        self.data = mixed(c4, self.source.tokenizer(), folder / "mixed.jsonl")

    def pruned(self) -> tuple[ss.Plan, ss.Checkpoint]:
        """The searched set, cut and repaired."""
        tokenizer, started = self.source.tokenizer(), time.perf_counter()
        chosen = ss.select(self.source, ss.Tokens.read("pydoc", tokenizer, samples=32), drop=8)
        searched = time.perf_counter()
        fit = ss.Tokens.read(self.data, tokenizer, samples=None, length=LENGTH - 8)
        found = ss.repair(self.source, frozenset(chosen.removed), replace(fit, ids=fit.ids[:256]))
        ss.prune(self.source, chosen, self.folder / "pruned", repair=found)
        self.seconds |= {"search": searched - started, "repair and prune": time.perf_counter() - searched}
        return chosen, ss.Checkpoint.open(str(self.folder / "pruned"))

    def healed(self, pruned: ss.Checkpoint, name: str) -> ss.Checkpoint:
        method, loss, rate = CANDIDATES[name]
        place = self.folder / name.replace(", ", "-")
        healing = ss.heal(
            pruned,
            place,
            data=self.data,
            method=method,
            objective=ss.Objective(loss),
            teacher=self.source if loss == "distill" else None,
            schedule=replace(COURSE, lr=rate),
            max_length=LENGTH,
            max_samples=SAMPLES,
        )
        self.seconds[name] = healing.seconds
        return ss.Checkpoint.open(str(place))


def losses(checkpoint: ss.Checkpoint, texts: Sequence[str]) -> list[float]:
    """Mean next-token loss on 40 x 256 tokens of each text."""
    decoder, tokenizer = Decoder.open(checkpoint), checkpoint.tokenizer()
    read = (ss.Tokens.read(text, tokenizer, samples=40, length=256, held_out=True) for text in texts)
    return [measure(decoder, tokens).loss for tokens in read]


def judged(checkpoint: ss.Checkpoint, wiki: str, data: str) -> ss.Evaluation:
    asked = ss.Tasks(TASKS, limit=LIMIT, data=data)
    return ss.evaluate(checkpoint, perplexity=["pydoc", wiki], length=256, tasks=asked, collapse=True)


def page(line: Line, chosen: ss.Plan, validation: Mapping[str, list[float]], found: Mapping[str, ss.Evaluation]) -> str:
    command = " ".join(["python studies/best.py", *(Path(each).name for each in sys.argv[1:])])
    best = min(CANDIDATES, key=lambda name: sum(validation[name]))
    timed = [*("search", "repair and prune"), best]
    lines = [
        "# SmolLM2-135M-Instruct without 8 of its 30 layers, by the best recipe\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}, "
        f"{torch.get_num_threads()} threads.\n",
        f"Layers {show_layers(chosen.removed)} go, {SAMPLES} samples of at most {LENGTH} tokens, one epoch. Seconds: "
        + ", ".join(f"{name} {line.seconds[name]:.0f}" for name in timed)
        + f"; together {sum(line.seconds[name] for name in timed):.0f}.\n",
        "## Chosen on validation text: nats per token\n",
        "| candidate | s | pydoc, held out | wiki, valid | sum |",
        "|---|---|---|---|---|",
    ]
    for name, (pydoc, wiki) in validation.items():
        seconds = f"{line.seconds[name]:.0f}" if name in line.seconds else "-"
        lines.append(f"| {name} | {seconds} | {pydoc:.3f} | {wiki:.3f} | {pydoc + wiki:.3f} |")
    lines += [
        f"\nLowest: {best}.\n",
        "## Reported on other data\n",
        "Perplexity on WikiText2's test pages; accuracy with its standard error, zero-shot.\n",
        f"| model | wiki, test | documents | {' | '.join(TASKS)} | mean of the first three |",
        f"|{'---|' * (len(TASKS) + 4)}",
        *(row for name, each in found.items() for row in _rows(name, each)),
        f"\nShare of the unpruned model's, first {FIRST} documents and the {LIMIT - FIRST} after them: "
        + "; ".join(_share(found, part) for part in (slice(0, FIRST), slice(FIRST, LIMIT)))
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _rows(name: str, found: ss.Evaluation) -> list[str]:
    wiki = next(each.value for text, each in found.perplexity.items() if text != "pydoc")
    parts = {f"first {FIRST}": slice(0, FIRST), f"{FIRST} to {LIMIT}": slice(FIRST, LIMIT)}
    return [
        f"| {name} | {wiki:.4g} | {label} | "
        + " | ".join(f"{_mean(found, task, part):.3f} ± {_error(found, task, part):.3f}" for task in TASKS)
        + f" | {sum(_mean(found, task, part) for task in TASKS[:3]) / 3:.4f} |"
        for label, part in parts.items()
    ]


def _mean(found: ss.Evaluation, task: str, part: slice) -> float:
    outcomes = found.tasks[task].outcomes[part]
    return sum(outcomes) / len(outcomes)


def _error(found: ss.Evaluation, task: str, part: slice) -> float:
    share, count = _mean(found, task, part), len(found.tasks[task].outcomes[part])
    return float((share * (1 - share) / (count - 1)) ** 0.5)


def _share(found: Mapping[str, ss.Evaluation], part: slice) -> str:
    *_, last = found.values()
    tasks = TASKS[:3]
    kept = sum(_mean(last, task, part) for task in tasks) / sum(_mean(found["unpruned"], task, part) for task in tasks)
    words = _mean(last, TASKS[3], part) / _mean(found["unpruned"], TASKS[3], part)
    return f"{kept:.1%} of the mean of three, {words:.1%} of lambada"


def main() -> None:
    c4, valid, test, data = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder), c4)
        chosen, pruned = line.pruned()
        texts = ("pydoc", valid)
        validation = {"unpruned": losses(line.source, texts), "repaired": losses(pruned, texts)}
        for name in CANDIDATES:
            validation[name] = losses(line.healed(pruned, name), texts)
            print(name, line.seconds[name], validation[name], flush=True)
        best = min(CANDIDATES, key=lambda name: sum(validation[name]))
        models = {
            "unpruned": line.source,
            "repaired": pruned,
            best: ss.Checkpoint.open(str(line.folder / best.replace(", ", "-"))),
        }
        found = {name: judged(model, test, data) for name, model in models.items()}
        Path(__file__).with_suffix(".md").write_text(page(line, chosen, validation, found), encoding="utf-8")


if __name__ == "__main__":
    main()
