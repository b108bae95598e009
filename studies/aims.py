"""Are the aims of the recipe reached? What SmolLM2 keeps after `shrink demo` in 15 minutes, on documents that chose nothing.

    python studies/aims.py ARTICLES C4_JSONL DATA_DIR

Nothing else may run beside it. Each cut is made with each of SEEDS, given C4 beside what the recipe heals on, and judged
on ARTICLES of Wikipedia, DOCUMENTS of each task behind those that studies/minutes.py takes, and probes of another seed.
The recipe is `best` with WEIGHT of C4's next-token loss. No document chose anything; the first 350 judged the models of
studies/peers.py, too. Writes studies/aims.json, which a run that goes on reads, and studies/aims.md, whose remarks stay.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import shortstack as ss
from minutes import LIMIT, MEASURES, SKIPPED, Judge, by_family, kept, run, save_page, unseen
from shortstack.machine.formats import show_layers

HERE = Path(__file__).parent
SEEDS, MINUTES, DOCUMENTS, JUDGING = (2, 3), 15, 500, 29
WEIGHT = 0.5
AIMS = {4: (0.98, 0.85, 0.85), 8: (0.95, 0.60, 0.60)}  # of the three tasks, of lambada, of the probes


def page(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> str:
    """The table of aims and what was kept."""
    names = MEASURES[1:]
    lines = [
        "# Are the aims reached? SmolLM2-135M-Instruct by `shortstack shrink demo` in 15 minutes, given C4 and "
        f"{WEIGHT} of its next-token loss\n",
        f"`python studies/aims.py wiki_demo.txt c4_demo.jsonl DATA_DIR`, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, two cores, {time.strftime('%Y-%m-%d')}.\n",
        "Shares of the unpruned model's values on Wikipedia's articles and documents that nothing was chosen by:",
        f"{DOCUMENTS} of each task behind the first {SKIPPED + LIMIT:,}, {Judge.items} items of each probe; of likelihood "
        "the geometric mean.\n",
        f"| layers removed | seed | {MEASURES[0]} | {' | '.join(names)} |",
        f"|{'---|' * (3 + len(names))}",
    ]
    for drop, aims in AIMS.items():
        lines.append(f"| minus {drop}: the aim | | | {' | '.join(f'{aim:.0%}' for aim in aims)} |")
        for row in rows:
            if row["drop"] == drop:
                shares = kept(row["judged"], base)
                found = " | ".join(f"{shares[name]:.0%}" for name in MEASURES)
                lines.append(f"| {show_layers(row['removed'])} | {row['seed']} | {found} |")
    tasks = ", ".join(f"{name} {base[name]:.3f}" for name in base if name != "loss" and not name.startswith("probe "))
    return "\n".join([*lines, f"\nThe unpruned model: {tasks}.", *by_family(rows, base)]) + "\n"


def with_text(folder: Path) -> Path:
    """Write the recipe `best` with WEIGHT of the next-token loss."""
    recipe = yaml.safe_load((files("shortstack.healing") / "presets" / "best.yaml").read_text(encoding="utf-8"))
    recipe["heal"]["next_token_weight"] = WEIGHT
    path = folder / "text.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    text, c4, tasks = sys.argv[1:]
    kept_in = HERE / "aims.json"
    known = json.loads(kept_in.read_text(encoding="utf-8")) if kept_in.exists() else {"runs": []}
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(text, unseen(tasks, Path(folder), SKIPPED + LIMIT), limit=DOCUMENTS, seed=JUDGING)
        if "base" not in known:
            known["base"] = judge.found(ss.Checkpoint.open("demo"))
        for seed in SEEDS:
            for drop in AIMS:
                if (drop, seed) in [(row["drop"], row["seed"]) for row in known["runs"]]:
                    continue
                recipe, data = with_text(Path(folder)), f"{c4},self,copying=0.5,drills"
                options = ss.ShrinkOptions(recipe=str(recipe), drop=str(drop), minutes=MINUTES, data=data)
                known["runs"].append(run("demo", options, judge, seed))
                print(json.dumps(known["runs"][-1]), flush=True)
                kept_in.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    save_page(kept_in.with_suffix(".md"), page(known["runs"], known["base"]))


if __name__ == "__main__":
    main()
