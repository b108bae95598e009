"""Threads that wait for each other: spinning, as torch has them, or giving their core back, as the command line sets them.

python benchmarks/waiting.py --rounds 3

A forward of 16 x 128 tokens of SmolLM2, a training step on 4 x 128, and one written token for 16 texts; alone, and beside a
busy process for each core. The results are equal to the bit: only waiting differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
from harness import ratios, rotated, spread, table

POLICIES = ("active", "passive")
BUSY = "while True: pass"
CHILD = """
import json, sys, time
import torch
import shortstack as ss

model = ss.Checkpoint.open(sys.argv[1]).model(dtype=torch.bfloat16)
long, short = torch.ones(16, 128, dtype=torch.long), torch.ones(4, 128, dtype=torch.long)

def train():
    model(short, labels=short).loss.backward()

@torch.no_grad()
def forward():
    return model(long)

@torch.no_grad()
def write():
    model(long[:, :1], past_key_values=past, use_cache=True)

with torch.no_grad():
    past = model(long[:, :32], use_cache=True).past_key_values
found = {}
for work, times in ((forward, 2), (train, 2), (write, 6)):
    work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    found[work.__name__] = (time.perf_counter() - began) / times
print(json.dumps(found))
"""


def measured(policy: str, model: str) -> dict[str, float]:
    """Seconds of each kind of work in a process of its own."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    command = [sys.executable, "-c", CHILD, model]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


@contextmanager
def busy(*, load: bool) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(load * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def main() -> None:
    chosen = harness.parser(__doc__, rounds=3).parse_args()
    rows, data = [], {}
    with tempfile.TemporaryDirectory() as folder:
        model = harness.tiny(Path(folder) / "tiny") if chosen.smoke else "demo"
        for load in (False, True):
            seconds: dict[str, list[dict[str, float]]] = {policy: [] for policy in POLICIES}
            with busy(load=load):
                for turn in range(1 if chosen.smoke else chosen.rounds):
                    for policy in rotated(list(POLICIES), turn):
                        seconds[policy].append(measured(policy, model))
            data["beside others" if load else "alone"] = seconds
            for work in seconds["active"][0]:
                active, passive = ([each[work] for each in seconds[policy]] for policy in POLICIES)
                times = ratios(active, passive)
                rows.append(
                    (work, "beside others" if load else "alone", spread(active), spread(passive), spread(times))
                )
    heading = ("work", "", "active, s: median (range)", "passive, s", "times as fast")
    record = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch"),
        "command": harness.command_line(),
        "seconds": data,
    }
    harness.save("waiting", record, [table(heading, rows)], smoke=chosen.smoke)


if __name__ == "__main__":
    main()
