"""Does more time help? The share that SmolLM2 keeps after `shortstack shrink demo`, by layers removed and minutes.

    python studies/minutes.py 5,15 4,8 SEED WIKI_TEXT DATA_DIR [DATA]     # minutes, and how many layers go

Nothing else may run beside it. Each run has an empty cache and the defaults of `shrink`, but for its seed and DATA, which it
heals on in place of the recipe's; what it leaves is judged on what it never sees: WIKI_TEXT, ITEMS items of each probe of
another seed, and the documents of TASKS behind their first SKIPPED, read from DATA_DIR (laid out as docs/evaluate.md says).
Each call adds its runs to studies/minutes.json, and writes studies/minutes.svg and studies/minutes.md, whose remarks stay,
of all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import shortstack as ss
from shortstack.charts import Picture
from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Panel
from shortstack.evaluation.suites import TASKS as KNOWN
from shortstack.machine.formats import show_layers

HERE = Path(__file__).parent
JUDGED, WINDOWS, ITEMS, SKIPPED, LIMIT = 17, 40, 50, 1000, 150
TASKS = ("piqa", "arc_easy", "hellaswag", "lambada_openai")
COMMAND, REMARKS = (
    "python studies/minutes.py MINUTES LAYERS SEED wikitext2/test.txt DATA_DIR [DATA]",
    "\n## Remarks\n",
)
MEASURES = ("likelihood of a token", "piqa, arc_easy, hellaswag", "lambada", "probes")


def unseen(data: str, folder: Path, skipped: int) -> str:
    """The documents of the tasks behind the first `skipped`, in the same layout."""
    for name in TASKS:
        task = KNOWN[name]
        for split, file in task.files.items():
            if split != task.evaluated and not (Path(data) / f"{file}.jsonl").is_file():
                continue  # examples for prompts, of which none have any here
            lines = (Path(data) / f"{file}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            kept_lines = lines[skipped:] if split == task.evaluated else lines
            (folder / f"{file}.jsonl").write_text("".join(kept_lines), encoding="utf-8")
    return str(folder)


@dataclass(frozen=True)
class Judge:
    """What a model is asked: windows of a text, items of each probe, and so many documents of each task in a folder."""

    text: str
    data: str | None
    windows: int = WINDOWS
    items: int = ITEMS
    limit: int = LIMIT
    seed: int = JUDGED

    def found(self, model: ss.Checkpoint) -> dict[str, float]:
        """The loss on the text, and the accuracy of each task and of each probe."""
        tasks = {"tasks": TASKS, "limit": self.limit, "data_dir": self.data} if self.data else {}
        found = ss.evaluate(
            model,
            ss.EvalConfig(self.text, num_samples=self.windows, probes=True, probe_items=self.items, **tasks),
            compute=ss.Compute(seed=self.seed),
        )
        probes = {f"probe {name}": each.value for name, each in found.probes.items()}
        (perplexity,) = found.perplexity.values()
        return {"loss": perplexity.loss, **{name: each.value for name, each in found.tasks.items()}, **probes}


class Stages:
    """Progress that counts the seconds of each stage, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage, self.since = "loading", time.perf_counter()

    def __call__(self, stage: str, _done: int, _total: int, /, *, note: str = "") -> None:
        now = time.perf_counter()
        self.seconds[self.stage] = round(self.seconds.get(self.stage, 0.0) + now - self.since, 1)
        self.stage, self.since = stage, now


def run(model: str, options: ss.ShrinkOptions, judge: Judge, seed: int = 0) -> dict[str, Any]:
    """One shrink, and what its checkpoint keeps."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SHORTSTACK_CACHE"] = str(Path(folder) / "cache")
        began, stages = time.perf_counter(), Stages()
        made = ss.shrink(model, Path(folder) / "out", options, compute=ss.Compute(seed=seed), progress=stages)
        seconds = time.perf_counter() - began
        checkpoint = ss.Checkpoint.open(str(made.output))
        schedule = checkpoint.record["healing"]["schedule"] if made.healing else {}
        found = judge.found(checkpoint)
    return {
        "on": time.strftime("%Y-%m-%d"),
        "drop": len(made.plan.removed),
        "minutes": options.minutes,
        "seed": seed,
        "data": Path(options.data.partition(",")[0]).name if options.data else None,
        "seconds": seconds,
        "stages": stages.seconds,
        "removed": list(made.plan.removed),
        "samples": made.healing.history.steps * schedule["per_device_train_batch_size"] if made.healing else 0,
        "left_out": list(made.left_out),
        "judged": found,
    }


def kept(found: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """The share of the unpruned model's value that is kept, by measure."""
    groups = {
        MEASURES[1]: [name for name in TASKS[:3] if name in base],
        MEASURES[2]: [name for name in TASKS[3:] if name in base],
        MEASURES[3]: [name for name in base if name.startswith("probe ")],
    }
    shares = {
        name: sum(found[each] for each in some) / (sum(base[each] for each in some) or 1)
        for name, some in groups.items()
        if some
    }
    return {MEASURES[0]: float(torch.tensor(base["loss"] - found["loss"]).exp()), **shares}


def page(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> str:
    names = [*kept(base, base)]
    lines = [
        "# What more time brings: SmolLM2-135M-Instruct by `shortstack shrink demo`\n",
        f"By `{COMMAND}`, torch {torch.__version__}, transformers {transformers.__version__}, two cores.\n",
        "Shares of the unpruned model's values, on a text, items and documents that no run saw; of likelihood the geometric",
        f"mean; {ITEMS} items of each probe, {LIMIT} documents of each task; samples passed in healing, repeats included.\n",
        "![what is kept, by minutes](minutes.svg)\n",
        f"| layers removed | data | on | seed | minutes | took | samples passed | {' | '.join(names)} |",
        f"|{'---|' * (7 + len(names))}",
    ]
    for row in ordered(rows):
        shares = [f"{share:.0%}" for share in kept(row["judged"], base).values()]
        cells = [
            show_layers(row["removed"]),
            row.get("data") or "-",
            row["on"],
            str(row.get("seed", 0)),
            f"{row['minutes']:g}",
            f"{row['seconds']:.0f} s",
            f"{row['samples']:,}",
            *shares,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *by_family(rows, base)]) + "\n"


def by_family(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> list[str]:
    """The lines of a table with the share of each probe's items answered rightly."""
    names = [name for name in base if name.startswith("probe ")]
    lines = [
        "\nShare of each probe's items answered rightly:\n",
        f"| layers | data | minutes | seed | {' | '.join(name.removeprefix('probe ') for name in names)} |",
        f"|{'---|' * (4 + len(names))}",
        f"| all | | | | {' | '.join(f'{base[name]:.2f}' for name in names)} |",
    ]
    for row in ordered(rows):
        run = f"minus {row['drop']} | {row.get('data') or '-'} | {row['minutes']:g} | {row.get('seed', 0)}"
        right = " | ".join(f"{row['judged'][name]:.2f}" for name in names)
        lines.append(f"| {run} | {right} |")
    return lines


def ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (row["drop"], row.get("data") or "", row["minutes"], row.get("seed", 0)))


def means(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> list[tuple[float, dict[str, float]]]:
    """The mean of what is kept over seeds, by minutes, in which the rows are ordered."""
    by_minutes = itertools.groupby(rows, key=lambda row: row["minutes"])
    shares = [(minutes, [kept(row["judged"], base) for row in some]) for minutes, some in by_minutes]
    return [
        (minutes, {name: statistics.fmean(each[name] for each in some) for name in some[0]}) for minutes, some in shares
    ]


def picture(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> Picture:
    """A panel for each number of layers and data of several minutes: what is kept against them, a line for each measure."""
    names, panels = [*kept(base, base)], []
    minutes = axis("minutes", [row["minutes"] for row in rows], "{:g}".format, log=True)
    shares = axis("kept", [0.0, 1.0], "{:.0%}".format)
    for (drop, data), some in itertools.groupby(ordered(rows), key=lambda row: (row["drop"], row.get("data"))):
        at = means([*some], base)
        if len(at) == 1 and data:
            continue
        lines = [
            Series(name, [Point(x, each[name], f"{name}, {x:g} minutes: {each[name]:.0%}") for x, each in at], place)
            for place, name in enumerate(names)
        ]
        title = f"minus {drop} layers{f', given {data}' if data else ''}"
        legend = [(line.colour, line.name) for line in lines]
        panels.append(Panel(title, Chart(title, minutes, shares, lines).svg(), HEIGHT, legend))
    return Picture("What SmolLM2 keeps, by minutes of shrink", panels)


def save_page(path: Path, page: str) -> None:
    """Write a page; the remarks that stand below it stay."""
    _, remarks, below = path.read_text(encoding="utf-8").partition(REMARKS) if path.exists() else ("", "", "")
    path.write_text(page + remarks + below, encoding="utf-8")


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    minutes, drops, seed, text, tasks, *given = sys.argv[1:]
    data = given[0] if given else None
    kept_in = HERE / "minutes.json"
    known = json.loads(kept_in.read_text(encoding="utf-8")) if kept_in.exists() else {"runs": []}
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(text, unseen(tasks, Path(folder), SKIPPED))
        if "base" not in known:
            known["base"] = judge.found(ss.Checkpoint.open("demo"))
        for drop, each in itertools.product(drops.split(","), minutes.split(",")):
            options = ss.ShrinkOptions(drop=drop, minutes=float(each), data=data)
            known["runs"].append(run("demo", options, judge, int(seed)))
            print(json.dumps(known["runs"][-1]), flush=True)
            kept_in.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    save_page(kept_in.with_suffix(".md"), page(known["runs"], known["base"]))
    kept_in.with_suffix(".svg").unlink(missing_ok=True)
    picture(known["runs"], known["base"]).save(kept_in.with_suffix(".svg"))


if __name__ == "__main__":
    main()
