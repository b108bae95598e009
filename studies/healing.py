"""Which way to heal gives SmolLM2 minus 8 of its 30 layers the most back, at equal tokens?

    python studies/healing.py C4_JSONL WIKI_TEXT PIQA ARC_EASY LAMBADA

Four plans (the tail; the lowest by bi; the lowest by ppl; what a search found, studies/selection.md), without and with
closed-form repair, then healed from the repaired weights by each method, loss and seed of GRID. All runs see the same
samples: C4 documents and pydoc in equal parts, at most 128 tokens each, 5 % held out. The rates (RATES) were set beforehand
from short trials, not tuned, but for the low one of an untied head. Judged on held-out pydoc, on WIKI_TEXT, and on the first
200 documents of each task, zero-shot: accuracy by likelihood, for lambada of the last word by the likeliest tokens. Finished
rows are kept in studies/healing.json and not run again; studies/healing.md is written anew after each. Those with the loss
self learnt from the teacher's own answers, which was worse and is no option any more.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import shortstack as ss
from shortstack.data.sources import read_documents
from shortstack.data.tokens import bos_ids, encode
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.likelihoods import Request, likelihoods
from shortstack.evaluation.perplexity import measure
from shortstack.healing import DoRA
from shortstack.machine.formats import show_layers

KEPT = Path(__file__).with_suffix(".json")
DOCUMENTS = 200
SAMPLES, LENGTH = 560, 128
PLANS = {"tail": "22-29", "bi": "3,13-17,25-26", "ppl": "4-5,12-14,16-17,25", "search": "12-18,25"}
SETTINGS = ss.HealingConfig(lr_scheduler_type="cosine", warmup_steps=10, max_length=LENGTH, max_samples=SAMPLES)
METHODS: dict[str, Callable[[], Any]] = {
    "norm": lambda: ss.Partial(train_last=0),
    "last 1": lambda: ss.Partial(train_last=1),
    "last 2": lambda: ss.Partial(train_last=2),
    "last 3": lambda: ss.Partial(train_last=3),
    "head": lambda: ss.Partial(train_last=0, untie_embeddings=True),
    "head, last 3": lambda: ss.Partial(train_last=3, untie_embeddings=True),
    "head, last 3, low rate": lambda: ss.Partial(train_last=3, untie_embeddings=True),
    "near cuts": lambda: ss.Partial(train_layers="11-12,17-18"),  # of the set that the search found
    "lora": lambda: ss.Lora(),
    "dora": lambda: DoRA(),
    "full": lambda: ss.Full(),
}
EQUAL_TIME = {"last 3": 3, "near cuts": 2}  # epochs, for about the time that one of lora or full takes
RATES = {
    "norm": 3e-3,
    "last 1": 1e-3,
    "last 2": 1e-3,
    "last 3": 1e-3,
    "head": 1e-3,
    "head, last 3": 1e-3,
    "head, last 3, low rate": 1e-4,  # the held-out loss of the head alone rose at 1e-3
    "near cuts": 1e-3,
    "lora": 2e-3,
    "dora": 2e-3,
    "full": 3e-4,
}


@dataclass(frozen=True)
class Run:
    """One row: a plan, whether it is repaired first, and how it heals."""

    plan: str
    repaired: bool = True
    method: str | None = None
    loss: str = "sft"
    seed: int = 0
    epochs: float = 1

    @property
    def key(self) -> str:
        parts = (self.plan, self.repaired, self.method, self.loss, self.seed)
        return "|".join(map(str, parts if self.epochs == 1 else (*parts, f"{self.epochs:g} epochs")))


GRID = [  # the first matter most: a study that is stopped has those
    *(Run(plan, repaired) for plan in PLANS for repaired in (False, True)),
    *(Run("search", method=method) for method in ("last 3", "lora", "full")),
    *(Run("search", method=method, loss="distill") for method in ("full", "last 3", "lora", "near cuts")),
    *(Run("search", method=method, epochs=epochs) for method, epochs in EQUAL_TIME.items()),
    *(Run("search", method=method, seed=seed) for seed in (1, 2) for method in ("lora", "last 3")),
    *(Run(plan, method=method) for plan in ("tail", "ppl", "bi") for method in ("last 3", "lora")),
    *(Run("search", method=method) for method in ("norm", "last 1", "last 2", "near cuts", "dora")),
    *(Run(plan, method="full") for plan in ("tail", "ppl", "bi")),
    *(Run("search", repaired=False, method=method) for method in ("last 3", "lora")),
    *(Run(plan, method="head, last 3") for plan in ("tail", "search")),  # the paper's recipe, its head no longer tied
    Run("search", method="head"),
    Run("search", method="head, last 3, low rate"),
    *(Run("search", method="full", seed=seed) for seed in (1, 2)),
]


@dataclass(frozen=True)
class Question:
    """A context, what may follow it, and the place of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def requests(self, tokenizer: Any) -> list[Request]:
        """Each choice after the context."""
        bos, before = bos_ids(tokenizer), encode(tokenizer, self.context)
        endings = [encode(tokenizer, self.context + choice) for choice in self.choices]
        return [Request((*bos, *ids), len(bos) + len(before)) for ids in endings]


def questions(paths: Sequence[str]) -> dict[str, list[Question]]:
    """The first documents of PIQA and ARC-Easy, worded as lm-evaluation-harness does."""
    makers = {"piqa": _piqa, "arc_easy": _arc}
    return {
        name: [maker(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()[:DOCUMENTS]]
        for (name, maker), path in zip(makers.items(), paths, strict=True)
    }


def _piqa(row: dict[str, Any]) -> Question:
    return Question(f"Question: {row['goal']}\nAnswer:", (f" {row['sol1']}", f" {row['sol2']}"), int(row["label"]))


def _arc(row: dict[str, Any]) -> Question:
    texts, labels = row["choices"]["text"], row["choices"]["label"]
    return Question(
        f"Question: {row['question']}\nAnswer:", tuple(f" {text}" for text in texts), labels.index(row["answerKey"])
    )


def accuracy(decoder: Decoder, tokenizer: Any, asked: Sequence[Question]) -> float:
    """How often the choice that the model finds likeliest is the right one."""
    requests = [request for question in asked for request in question.requests(tokenizer)]
    values = iter([found.value for found in likelihoods(decoder, requests)])
    right = 0
    for question in asked:
        of_choices = [next(values) for _ in question.choices]
        right += of_choices.index(max(of_choices)) == question.answer
    return right / len(asked)


@torch.no_grad()
def last_words(decoder: Decoder, tokenizer: Any, path: str) -> float:
    """How often every token of a text's last word is the likeliest (LAMBADA)."""
    right = 0
    lines = Path(path).read_text(encoding="utf-8").splitlines()[:DOCUMENTS]
    for line in lines:
        text = json.loads(line)["text"]
        before, _, word = text.rpartition(" ")
        ids, start = encode(tokenizer, f"{before} {word}"), len(encode(tokenizer, before))
        states = decoder.walk(torch.tensor([ids]))[UNPRUNED][0, start - 1 : -1]
        right += decoder.token_logits(states).argmax(-1).tolist() == ids[start:]
    return right / len(lines)


class Judge:
    """Return the text and tasks that every row is judged on."""

    def __init__(self, tokenizer: Any, paths: Sequence[str]) -> None:
        wiki, *tasks, self.lambada = paths
        self.tokenizer = tokenizer
        self.texts = {
            name: ss.Tokens.read(text, tokenizer, samples=40, length=256, held_out=True)
            for name, text in (("pydoc", "pydoc"), ("wiki", wiki))
        }
        self.tasks = questions(tasks)

    def __call__(self, checkpoint: ss.Checkpoint) -> dict[str, float]:
        decoder = Decoder.open(checkpoint)
        found = {name: measure(decoder, tokens).value for name, tokens in self.texts.items()}
        found |= {name: accuracy(decoder, self.tokenizer, some) for name, some in self.tasks.items()}
        return {**found, "lambada": last_words(decoder, self.tokenizer, self.lambada)}


def mixed(c4: str, tokenizer: Any, path: Path) -> str:
    """C4 documents and pydoc paragraphs in equal parts of windows, as a JSONL file."""
    windows: list[list[str]] = [[], []]
    for kind, source in enumerate((c4, "pydoc")):
        for document in read_documents(source):
            ids = encode(tokenizer, document)
            windows[kind] += [
                tokenizer.decode(ids[start : start + LENGTH - 1]) for start in range(0, len(ids), LENGTH - 1)
            ]
    some = [text for pair in zip(*windows, strict=False) for text in pair]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
    return str(path)


class Bench:
    """The model, its cuts and their repairs, in a folder that goes."""

    def __init__(self, folder: Path, c4: str) -> None:
        self.folder, self.source = folder, ss.Checkpoint.open("demo")
        self.data = mixed(c4, self.source.tokenizer(), folder / "mixed.jsonl")
        self.fit = ss.Tokens.read(self.data, self.source.tokenizer(), samples=None, length=LENGTH - 8)
        self.fit = replace(self.fit, ids=self.fit.ids[:256])

    def cut(self, plan: str, *, repaired: bool) -> ss.Checkpoint:
        place = self.folder / f"{plan}-{repaired}"
        if not place.exists():
            chosen = ss.choose(self.source.anatomy.layers, ss.Choice(layers=PLANS[plan])).plan
            ss.prune(self.source, chosen, place, repair=self.fit if repaired else None)
        return ss.Checkpoint.open(place)

    def run(self, run: Run) -> tuple[ss.Checkpoint, dict[str, Any]]:
        pruned = self.cut(run.plan, repaired=run.repaired)
        if run.method is None:
            return pruned, {}
        place = self.folder / run.key.replace("|", "-").replace(" ", "_")
        config = replace(
            SETTINGS,
            data=self.data,
            method=METHODS[run.method](),
            loss="distill" if run.loss == "distill" else "sft",
            learning_rate=RATES[run.method],
            seed=run.seed,
            num_train_epochs=run.epochs,
        )
        healing = ss.heal(pruned, place, config, base=self.source)
        return ss.Checkpoint.open(place), {
            "seconds": healing.seconds,
            "threads": torch.get_num_threads(),
            "trained": healing.trainable_parameters,
            "held_out": [healing.history.held_out[0][1], healing.history.held_out[-1][1]],
        }


def rows(bench: Bench, judge: Judge, kept: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for run in GRID:
        if run.key not in kept:
            checkpoint, found = bench.run(run)
            yield run.key, {**found, **judge(checkpoint)}


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    c4, *paths = sys.argv[1:]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), c4)
        judge = Judge(bench.source.tokenizer(), paths)
        if "unpruned" not in kept:
            kept["unpruned"] = judge(bench.source)
        for key, found in rows(bench, judge, kept):
            kept[key] = found
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            KEPT.with_suffix(".md").write_text(page(kept), encoding="utf-8")
            print(
                key,
                {name: value if name == "held_out" else round(value, 3) for name, value in found.items()},
                flush=True,
            )


COLUMNS = ("pydoc", "wiki", "piqa", "arc_easy", "lambada")


def page(kept: dict[str, Any]) -> str:
    command = " ".join(["python studies/healing.py", *("/".join(Path(each).parts[-2:]) for each in sys.argv[1:])])
    done = sum(run.key in kept for run in GRID)
    lines = [
        "# Healing SmolLM2-135M-Instruct without 8 of its 30 layers\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"{SAMPLES} samples of at most {LENGTH} tokens, 71,000 in all. Perplexity on held-out pydoc and wiki text; accuracy",
        f"on the first {DOCUMENTS} documents of each task (standard error about {math.sqrt(0.25 / DOCUMENTS):.3f}).",
        f"{done} of the {len(GRID)} runs of the grid have been made.\n",
        "Repair was fitted on, and healing learnt from, C4 and pydoc: the pydoc column is of the kind of text that was",
        "trained on, wiki of another kind. The figures for repair in studies/repair.md differ: there it was fitted on C4.",
        "Seconds are of two threads and nothing beside; none are given of runs that had company. What frozen layers and the",
        "teacher give is kept between runs: of several that share it, only the first takes the time for it. The methods are",
        "compared from the repaired searched set; of the other plans there are the rows that tell them apart.\n",
        f"| plan | start | healing | loss | seed | epochs | s | {' | '.join(COLUMNS)} |",
        f"|{'---|' * (len(COLUMNS) + 7)}",
        _line(["unpruned", *"------"], kept["unpruned"]),
    ]
    for run in GRID:
        if run.key in kept:
            found = kept[run.key]
            start = "repaired" if run.repaired else "cut"
            how = [run.method, run.loss, str(run.seed), f"{run.epochs:g}", _time(found)] if run.method else ["-"] * 5
            lines.append(_line([f"{run.plan} {show_layers(_layers(run.plan))}", start, *how], found))
    return "\n".join(lines) + "\n"


def _time(found: dict[str, Any]) -> str:
    """Seconds; none where something else ran beside it."""
    return f"{found['seconds']:.0f}" if found["seconds"] else "-"


def _layers(plan: str) -> list[int]:
    return list(ss.choose(30, ss.Choice(layers=PLANS[plan])).plan.removed)


def _line(cells: Sequence[str], found: dict[str, float]) -> str:
    numbers = [f"{found[name]:.4g}" if name in ("pydoc", "wiki") else f"{found[name]:.3f}" for name in COLUMNS]
    return f"| {' | '.join([*cells, *numbers])} |"


if __name__ == "__main__":
    main()
