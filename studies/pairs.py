"""Which differences in accuracy does the study at SmolLM2's size tell apart, document by document?

    python studies/pairs.py

Reads studies/smollm2/runs.sqlite, trials by their number in studies/smollm2.yaml; writes studies/smollm2/pairs.md.
Differences of arc_easy over the same 200 documents, with standard error, 95 % interval and McNemar's p, each by
itself and corrected for all rows by Holm.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shortstack.evaluation.paired import Estimate, Sample, compare_tasks
from shortstack.runs.records import TrialRecord, read

HERE = Path(__file__).parent / "smollm2"
BASE = -1
ROWS = {
    "eight layers, not healed: tail - lowest ppl": (0, 4),
    "eight layers, not healed: tail - lowest bi": (0, 6),
    "eight layers, not healed: angular block - lowest ppl": (10, 4),
    "eight layers, not healed: search - lowest ppl": (12, 4),
    "tail, healed: last 3 - LoRA": (1, 32),
    "tail, repaired and healed: last 3 - LoRA": (26, 33),
    "search, repaired and healed: last 3 - LoRA": (28, 30),
    "search, repaired and healed: last 5 - last 3": (29, 28),
    "search, repaired: LoRA at the paper's rate - not healed": (31, 27),
    "search, repaired: LoRA on Alpaca - on C4": (49, 30),
    "search, repaired: LoRA on Dolly - on C4": (50, 30),
    "bi, healed: in eight turns - at once": (34, 7),
    "tail, healed: in eight turns - at once": (35, 1),
    "ppl, healed: in two turns - at once": (36, 5),
    "bi, not healed: one by one - at once": (37, 6),
    **{f"lowest ppl, {5 + 10 * place} % gone - unpruned": (67 + place, BASE) for place in range(8)},
}


def outcomes(trials: dict[int, TrialRecord], number: int) -> Sample:
    """Return what a trial answered last, of the unpruned model for BASE."""
    found = trials[0].step("evaluate_base") if number == BASE else None
    task = (found.result if found else trials[number].result("evaluate_healed", "evaluate_pruned"))["tasks"]["arc_easy"]
    return Sample(Estimate(task["value"], task["stderr"]), dict(zip(task["documents"], task["outcomes"], strict=True)))


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    trials = {trial.number: trial for trial in read(HERE).trials}
    ours, theirs = ({name: outcomes(trials, pair[place]) for name, pair in ROWS.items()} for place in (0, 1))
    lines = [
        "# Accuracy, pair by pair\n",
        "`python studies/pairs.py`: arc_easy over the same 200 documents, from the store of [the study](report.md).\n",
        "| difference | arc_easy | 95 % | p | p, Holm |",
        "|---|---|---|---|---|",
    ]
    for name, each in compare_tasks(ours, theirs).items():
        low, high = each.interval
        lines.append(
            f"| {name} | {each.difference:+.3f} ± {each.stderr:.3f} | {low:+.3f} to {high:+.3f} "
            f"| {each.p:.2g} | {each.p_holm:.2g} |"
        )
    (HERE / "pairs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
