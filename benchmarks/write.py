"""What a model writes itself: rows that leave and enter, beside batches that go on until their last row has ended.

    python benchmarks/write.py              # SmolLM2, 192 questions and their answers: minutes
    python benchmarks/write.py --smoke

In turns, several rounds, the same prompts and seed. Questions follow an empty user turn, up to 96 tokens; answers follow
each, up to 192; as `--text self` does it, but for all at once. tokens: those that are kept, end tokens included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers.utils.logging import disable_progress_bar

import harness
from harness import ratios, spread, table
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import generation
from shortstack.decoder.own_text import ANSWER_TOKENS, QUESTION_TOKENS, Writer
from shortstack.machine.device import AUTO
from shortstack.machine.progress import silent

TEXTS = 192
WAYS = ("in and out", "batch by batch")


def written(writer: Writer, way: str, prompts: Sequence[Sequence[int]], room: int) -> tuple[list[list[int]], float]:
    """What follows the prompts, and the seconds that took."""
    leaving = generation.can_leave if way == WAYS[0] else lambda *_: False
    with mock.patch.object(generation, "can_leave", leaving):
        started = time.perf_counter()
        texts = writer._write(prompts, room, "0 texts", silent)
    return texts, time.perf_counter() - started


def round_of(writer: Writer, way: str, texts: int, rooms: Sequence[int]) -> dict[str, Any]:
    questions, first = written(writer, way, [writer._opening] * texts, rooms[0])
    words = [writer.tokenizer.decode(each, skip_special_tokens=True) for each in questions]
    prompts = [writer._encoded(writer._rendered(each, answer=True)) for each in words if each]
    answers, second = written(writer, way, prompts, rooms[1])
    tokens = sum(map(len, questions)) + sum(map(len, answers))
    return {"seconds": first + second, "tokens": tokens, "tokens_per_s": tokens / (first + second)}


def main() -> None:
    options = harness.parser(__doc__, rounds=3)
    options.add_argument("--texts", type=int, default=TEXTS)
    chosen = options.parse_args()
    disable_progress_bar()
    rooms = (4, 6) if chosen.smoke else (QUESTION_TOKENS, ANSWER_TOKENS)
    texts, rounds = (70, 1) if chosen.smoke else (chosen.texts, chosen.rounds)
    with tempfile.TemporaryDirectory() as folder:
        source = harness.tiny(Path(folder) / "model") if chosen.smoke else "demo"
        writer = Writer(Checkpoint.open(source), AUTO)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for turn in range(rounds):
            for way in harness.rotated(WAYS, turn):
                found[way].append(round_of(writer, way, texts, rooms))
    speeds = {way: [each["tokens_per_s"] for each in runs] for way, runs in found.items()}
    rows = [(way, spread(speeds[way], 0), found[way][0]["tokens"]) for way in WAYS]
    won = spread(ratios(*(speeds[way] for way in WAYS)))
    sections = [
        __doc__.strip(),
        table(("way", "tokens per second", "tokens of a round"), rows),
        f"In and out over batch by batch: {won}, {torch.get_num_threads()} threads.",
    ]
    data = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch", "transformers"),
        "command": harness.command_line(),
        "rows": found,
    }
    harness.save("write", data, sections, smoke=chosen.smoke)


if __name__ == "__main__":
    main()
