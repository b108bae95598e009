"""How much of the minutes a stage of shrink may take: one measured rate, one small table, and what is left by the clock.

A run notes the seconds it has used in its folder, so that a killed one goes on with the rest.

>>> amounts_for(300.0, Amounts(), rate=2000.0, layers=30).windows
8
>>> amounts_for(60.0, Amounts(), rate=2000.0, layers=30).less(Amounts(judged=11, documents=20))[0]
'calibration windows of each text: 4 instead of 16'
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from shortstack.data import CalibrationText
from shortstack.data.mixture import MIX, parse_sources, unwritten
from shortstack.data.tokens import JUDGING
from shortstack.errors import InputError, ShortstackError
from shortstack.evaluation import EvalConfig
from shortstack.machine.clock import Clock
from shortstack.machine.files import check_new, remove, rename_new, save_json, scratch_beside
from shortstack.machine.formats import duration
from shortstack.machine.progress import Progress
from shortstack.planning.selection import CANDIDATES
from shortstack.shrinking.options import LIMIT
from shortstack.shrinking.stages import forget

STAGE = "shrink"
NOTED = "clock.json"  # in the folder of stages: the seconds used
EVERY = 2.0  # seconds between two notes of what is used
CHOOSING = 0.33  # of the minutes, for choosing layers
REPAIRING = 0.2  # of the minutes, for repairing the cut
WRITING = 0.2  # of the minutes, for text that the model writes itself to choose and repair on
MEASURING = 0.03  # of the minutes, for each of texts, probes and tasks of one model
WINDOW = 128  # tokens of a calibration window
PROBE_TOKENS = 1_500  # forward, that an item of each probe takes about as long as; JSON is written token by token
WRITTEN_TOKENS = 23_000  # forward, in whose time the fewest texts are written, which is token by token
DOCUMENT_TOKENS = 300  # of a task's document with all its answers
LAYERS = 30  # of the model that LEVELS was measured on
WHAT = {
    "windows": "calibration windows of each text",
    "length": "tokens of a calibration window",
    "text": "calibration text",
    "finalists": "sets of layers repaired before one is chosen",
    "repair": "windows to repair on",
    "repair_text": "text to repair on",
    "judged": "windows of each text to measure on",
    "probe_items": "items of each probe",
    "documents": "documents of each task",
}


class Level(NamedTuple):
    """How thoroughly layers are chosen: windows of each text, of so many tokens, and finalists.

    passes: windows of WINDOW tokens that the whole model passes in that time.
    """

    passes: int
    windows: int
    length: int
    finalists: int


# From the most thorough; passes of SmolLM2 by the recipe `best` (AMD EPYC, bf16, 2026-11-29). On the four texts of the mix
# choosing 8 layers takes 461 and 754 for 4 and 8 windows, 4 layers 375 for 4. Of three texts 16 windows took 1,096 and a
# finalist on 8 took 231, to which a third is added for four. On windows of 32 tokens choosing 8 layers takes 137, and the
# layers are those that windows of 64 choose.
# Twice the windows take twice as long, and longer where streams take more than 2 GiB at once: the walk begins anew for each.
SOURCES = 4  # of the text that LEVELS was measured on
LEVELS = (
    Level(36_000, 128, 128, 5),
    Level(18_000, 64, 128, 5),
    Level(9_000, 32, 128, 5),
    Level(4_500, 16, 128, 5),
    Level(2_300, 8, 128, 5),
    Level(1_700, 8, 128, 3),
    Level(800, 8, 128, 0),
    Level(470, 4, 128, 0),
    Level(260, 4, 64, 0),
    Level(150, 4, 32, 0),
)
# Repair walks the model, whatever it is fitted on, and takes three passes a window: 195 passes on 32 windows, 488 on 128.
REPAIR_PASSES, REPAIR_WINDOW_PASSES = 97, 3


@dataclass(frozen=True)
class Amounts:
    """Amounts: windows of each text to choose on, their length in tokens, finalists of repaired-blocks, windows
    to repair on, of all their texts; and of what is measured windows of each text, items of each probe, documents of each
    task.
    """

    windows: int = 16
    length: int = WINDOW
    text: str = MIX
    finalists: int = CANDIDATES
    repair: int = 1024
    repair_text: str = MIX
    judged: int = 64
    probe_items: int = 20
    documents: int | float = LIMIT

    @property
    def calibration_text(self) -> CalibrationText:
        """The text that layers are chosen on."""
        return CalibrationText(self.text, self.windows, self.length)

    @property
    def repair_windows(self) -> CalibrationText:
        """The windows that the cut is repaired on."""
        return CalibrationText(self.repair_text, length=self.length).of_all(self.repair)

    def less(self, wanted: Amounts) -> list[str]:
        """List the amounts below what was wanted, in words."""
        pairs = {field.name: (getattr(self, field.name), getattr(wanted, field.name)) for field in fields(self)}
        if pairs["repair_text"] == pairs["text"] or not wanted.repair:
            del pairs["repair_text"]  # the same is said of the text
        if self.windows > wanted.windows:
            del pairs["windows"]  # there was time for more
        return [f"{WHAT[name]}: {now} instead of {then}" for name, (now, then) in pairs.items() if now != then]


def amounts_for(
    seconds: float,
    wanted: Amounts,
    *,
    rate: float,
    layers: int,
    cuts: int = 1,
    texts: int = 1,
    tasks: int = 1,
    most: int = 0,
) -> Amounts:
    """Fit as much of what is wanted into so many seconds for each cut. rate: tokens a second through the model, forward.

    most: windows of each text to choose on where there is time for more than are wanted.
    """
    written = WRITING * seconds * cuts * rate  # text that the model writes is the same for all cuts
    in_time = unwritten if written < WRITTEN_TOKENS else str
    text, repair_text = in_time(wanted.text), in_time(wanted.repair_text)
    passes = seconds * rate * LAYERS / layers / WINDOW
    room = CHOOSING * passes * SOURCES / len(parse_sources(wanted.text))
    level = next((level for level in LEVELS if level.passes <= room), LEVELS[-1])
    sources = len(parse_sources(repair_text))  # repair reads as many windows of each, whatever it is told
    windows = int((REPAIRING * passes - REPAIR_PASSES) / REPAIR_WINDOW_PASSES)
    tokens = MEASURING * seconds * rate
    return replace(
        wanted,
        windows=min(max(wanted.windows, most), level.windows),
        length=min(wanted.length, level.length),
        text=text,
        repair_text=repair_text,
        finalists=min(wanted.finalists, level.finalists),
        repair=min(wanted.repair, max(windows - windows % sources, JUDGING * sources)),
        judged=min(wanted.judged, max(2, int(tokens / texts / EvalConfig.seq_length))),
        probe_items=min(wanted.probe_items, max(4, int(tokens / PROBE_TOKENS))) if wanted.probe_items else 0,
        documents=min(wanted.documents, max(2, int(tokens / tasks / DOCUMENT_TOKENS))) if wanted.documents else 0,
    )


def least_passes(sources: int) -> float:
    """Count the passes of choosing by the last level, and of repair on the fewest windows, of as many tokens."""
    repairing = REPAIR_PASSES + REPAIR_WINDOW_PASSES * JUDGING * sources * LEVELS[-1].length / WINDOW
    return LEVELS[-1].passes * sources / SOURCES + repairing


def check_minutes(clock: Clock, rate: float, layers: int, cuts: int = 1, *, sources: int = SOURCES) -> None:
    """Refuse minutes in which the model cannot even be loaded and the least be chosen, for each of the cuts.

    sources: of the text that layers are chosen on.
    """
    least = clock.used + cuts * least_passes(max(sources, SOURCES)) * WINDOW * layers / LAYERS / rate
    if least > clock.seconds:
        used = duration(clock.used)
        expected = f"at least {duration(least)} for loading the model and choosing layers, with {used} used already"
        enough = max(1, -(-int(2 * least) // 60))
        fix = f"allow {enough} minute{'s' * (enough > 1)}"
        raise InputError(duration(clock.seconds), expected=expected, fix=fix, option="minutes")


class ClockProgress:
    """One line: the milliseconds used of all, so that the time left is the clock's, and what is being done.

    Without a time limit a line for each stage.
    """

    def __init__(self, progress: Progress, clock: Clock, file: Path) -> None:
        self.told, self.clock, self.file, self.noted = progress, clock, file, 0.0

    def __call__(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        used = self.clock.used
        if math.isinf(self.clock.seconds):
            self.told(stage, done, total, note=note)
            return
        far = f", {done / total:.0%}" if total > 1 else ""
        self.told(STAGE, _ms(used), self._all(used), note=f"{stage}{far}{f', {note}' if note else ''}")
        if used - self.noted > EVERY:
            self.keep()

    def begin(self) -> None:
        """Make the folder of stages, unless it is there; it is never without its note, by which the next run knows it."""
        if not self.file.exists():
            with scratch_beside(self.file.parent) as scratch:
                save_json(scratch / self.file.name, {"used": self.clock.used})
                rename_new(scratch, self.file.parent)

    def keep(self) -> None:
        self.noted = self.clock.used
        save_json(self.file, {"used": self.noted})

    def forget(self) -> None:
        """Note that nothing is used, and forget what there was no time for: the next run is another."""
        save_json(self.file, {"used": 0.0})
        forget(self.file.parent)

    def end(self) -> None:
        if math.isfinite(self.clock.seconds):
            used = max(1, _ms(self.clock.used))
            self.told(STAGE, used, used)

    def _all(self, used: float) -> int:
        return max(_ms(self.clock.seconds), _ms(used) + 1)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def clock_of(seconds: float, file: Path, *, before: float) -> Clock:
    """Make the clock of a run, which goes on where it was left. before: seconds of this call that have passed."""
    used = json.loads(file.read_text(encoding="utf-8"))["used"] if file.exists() else 0.0
    return Clock(seconds, used=used + before)


def check_unfinished(file: Path) -> None:
    """Refuse a folder in the place of an unfinished run that holds something else; file: its note of the time."""
    folder = file.parent
    if folder.exists() and not file.exists() and (not folder.is_dir() or any(folder.iterdir())):
        check_new(folder)


@contextmanager
def noting(progress: ClockProgress) -> Iterator[ClockProgress]:
    """Note the seconds used in the folder of stages: a killed run goes on in what is left; after an error another begins."""
    folder = progress.file.parent
    progress.begin()
    try:
        yield progress
    except ShortstackError:
        progress.forget()
        raise
    except BaseException:
        progress.keep()
        raise
    finally:
        if [*folder.iterdir()] == [progress.file]:  # the minutes are too few: nothing was begun
            remove(folder)
    progress.end()
