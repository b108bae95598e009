"""What `--dry-run` says of the verbs that large.py does not run, with their own settings, of three sizes.

    python benchmarks/foreseen.py               # minutes, 4 GB of disk; needs root, to set a limit by a control group
    python benchmarks/foreseen.py --smoke

Each is asked in a process of its own, in 6 GB. Weights are random numbers in the first file of a checkpoint and holes in all
others, since a dry run times one layer and the head, and counts the rest from headers. The study has two trials: a cut by
reverse and one by bi, each healed and measured. Of a verb that refuses, what it says stands below the table.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
from harness import table
from large import GB, SIZES, SMOKE, Line, Shape, child_make, control_group, told

MAIN = Path(__file__).resolve()
SMOKED = ("sweep", "shrink", "study of two trials")
STUDY = """models: [{model}]
metrics: [reverse, bi]
calibration: {{text: pydoc}}
drop: {drop}
heal: [{{name: last 3, method: partial, last: 3, data: pydoc, max_samples: 500, epochs: 1}}]
evaluation: {{perplexity: [pydoc], samples: 64}}
"""


def asked(model: Path, shape: Shape) -> dict[str, tuple[object, ...]]:
    """The commands, by what a table calls them."""
    drop, out = shape.drop, model.parent
    study = out / "study.yaml"
    study.write_text(STUDY.format(model=model, drop=drop), encoding="utf-8")
    return {
        "score --metric bi,ppl": ("score", model, "--metric", "bi,ppl"),
        "sweep": ("sweep", model),
        "plan": ("plan", model, "--drop", drop),
        "prune --repair, blocks": (
            *("prune", model, "--strategy", "repaired-blocks", "--repair", "--drop", drop, "-o", out / "cut"),
        ),
        "evaluate --probes": ("evaluate", model, "--probes"),
        "profile": ("profile", model),
        "compare": ("compare", model, "--memory", "75%"),
        "shrink": ("shrink", model, "--drop", drop, "--minutes", 15, "-o", out / "small"),
        "export --gguf": ("export", model, "--gguf", out / "small.gguf", "--converter", sys.executable),
        "study of two trials": ("study", study),
    }


def needs(line: Line, *words: object) -> dict[str, Any]:
    """Seconds, bytes of memory and of disk; or why the verb refuses."""
    try:
        found = told(line.child("verb", *words, "--dry-run", "--json", "-q", limited=True).output)
    except RuntimeError as refused:
        return {"refused": str(refused).split("...", 1)[1].strip().splitlines()[-4:]}
    seconds = found.get("seconds", found.get("all_seconds"))
    if isinstance(seconds, dict):  # by kind of step
        seconds = found.get("all_seconds", sum(seconds.values()) + found.get("start_seconds", 0.0))
    disk = found.get("written_bytes", found.get("disk_bytes"))
    return {"seconds": seconds, "memory_bytes": found.get("memory_bytes"), "disk_bytes": disk, "said": found}


def cell(found: dict[str, Any]) -> str:
    """Time, memory and disk in one cell.

    >>> cell({"seconds": 90, "memory_bytes": 2e9, "disk_bytes": 0}), cell({"refused": ["no"]})
    ('1.5 min, 2.0 GB', 'refused')
    """
    if "refused" in found:
        return "refused"
    seconds, memory, disk = (found[name] for name in ("seconds", "memory_bytes", "disk_bytes"))
    parts = ["" if seconds is None else f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.3g} min"]
    parts += ["" if memory is None else f"{memory / GB:.1f} GB", f"{disk / GB:.1f} GB on disk" if disk else ""]
    return ", ".join(filter(None, parts))


def child_holes(size: str, out: str) -> None:
    child_make(replace({**SIZES, "tiny": SMOKE}[size], holes=True), out)


def foreseen(name: str, shape: Shape, work: Path) -> dict[str, dict[str, Any]]:
    """What each verb says of one size."""
    harness.measured([sys.executable, str(MAIN), "--child", name, str(work / "model")], {"HF_HUB_OFFLINE": "1"})
    with control_group(shape.limit) as group:
        line = Line(name, shape, work, group)
        rows = {}
        commands = asked(work / "model", shape)
        for label in SMOKED if name == "tiny" else commands:
            rows[label] = needs(line, *commands[label])
            print(f"  {name} {label}: {cell(rows[label])}", file=sys.stderr)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child_holes(*sys.argv[2:])
    options = harness.parser(__doc__, rounds=1)
    chosen = options.parse_args()
    shapes = {"tiny": SMOKE} if chosen.smoke else {size: SIZES[size] for size in ("135M", "0.5B", "8B")}
    found = {}
    for name, shape in shapes.items():
        with tempfile.TemporaryDirectory(prefix="foreseen-") as folder:
            found[name] = foreseen(name, shape, Path(folder))
    rows = [(f"`{label}`", *(cell(each[label]) for each in found.values())) for label in next(iter(found.values()))]
    refused = [
        f"{name}, {label}: {' '.join(needed['refused'])}"
        for name, each in found.items()
        for label, needed in each.items()
        if "refused" in needed
    ]
    data = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "rows": found,
    }
    harness.save("foreseen", data, [__doc__.strip(), table(("verb", *found), rows), *refused], smoke=chosen.smoke)
    return None


if __name__ == "__main__":
    main()
