"""The time it takes to ask: `shortstack --help` and `shortstack list`, beside an interpreter that does nothing.

python benchmarks/start.py --rounds 10
"""

from __future__ import annotations

import sys

import harness
from harness import median, rotated, spread, table, verdict

AIM = 0.5
CONTENDERS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "shortstack --help": [sys.executable, "-m", "shortstack", "--help"],
    "shortstack list": [sys.executable, "-m", "shortstack", "list"],
}


def main() -> None:
    chosen = harness.parser(__doc__, rounds=10).parse_args()
    rounds = 1 if chosen.smoke else chosen.rounds
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for command in CONTENDERS.values():
        harness.measured(command)  # the first run compiles bytecode
    for turn in range(rounds):
        for name in rotated(list(CONTENDERS), turn):
            seconds[name].append(harness.measured(CONTENDERS[name]).seconds)
    data = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "cyclopts", "rich"),
        "command": harness.command_line(),
        "seconds": seconds,
    }
    rows = [
        (name, spread(found), "" if name.startswith("python") else verdict(median(found) < AIM))
        for name, found in seconds.items()
    ]
    harness.save(
        "start", data, [table(("command", "wall, s: median (range)", f"under {AIM} s"), rows)], smoke=chosen.smoke
    )


if __name__ == "__main__":
    main()
