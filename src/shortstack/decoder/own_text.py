"""Text that a model writes itself: chats, questions as well as answers, or what a base model says after nothing.

For a chat model its own template with an empty user turn is the prompt for a question, and that question the prompt for an
answer (Magpie, arXiv 2406.08464); a base model writes from BOS (self-calibration, arXiv 2410.17170). All is drawn at
temperature 1 from the whole distribution, by a seed, and kept in the cache as it is written.
"""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint
from shortstack.data import CalibrationText, Rows, Tokens, source_of
from shortstack.data.examples import render
from shortstack.data.mixture import MIX, READ, parse_sources
from shortstack.data.sources import OWN
from shortstack.data.tokens import bos_ids, encode, own_windows
from shortstack.decoder.generation import DRAWS, ROWS, draw_seed, generate
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import DataError, ShortstackWarning, one_line
from shortstack.machine.cache import cache_directory, content_key, mark_used
from shortstack.machine.clock import Clock
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import save_json
from shortstack.machine.progress import Progress, silent, under

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS = 96, 192, 256
MOST_EMPTY = 4  # batches of nothing, one after the other, after which a model is said to write nothing
BATCHES = (8, 24, ROWS)  # texts of the first, the second and each further batch: calibration takes few
MARGIN = 64  # of a template, beside what opens a question
MARK = "QqQ"  # stands in a template where a user's words go


def rows_of(batch: int) -> int:
    """Texts that are written in a batch."""
    return BATCHES[min(batch, len(BATCHES) - 1)]


def calibration_tokens(
    checkpoint: Checkpoint,
    text: CalibrationText | None = None,
    *,
    at_least: int | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
    dry_run: bool = False,
) -> Tokens:
    """The windows of a calibration text, and of what the model writes itself where that is a part of it.

    A model may not be able to write: it is streamed, or its template has no place for a question. Of `mix` the rest is read
    then, and a warning says so. at_least: as in Tokens.read. dry_run: the model writes nothing, and tokens of no meaning
    stand for what it would.
    """
    text = text or CalibrationText()
    text.check()
    check_positions(checkpoint, text.length, "length")
    own = OwnText(checkpoint, compute, progress, dry_run=dry_run)
    if text.text == MIX and (reason := own.hindered()):
        said = f"{MIX} is {READ} here, without what the model writes itself: {reason}"
        warnings.warn(said, ShortstackWarning, stacklevel=2)
        text = replace(text, text=READ)
    return text.tokens(checkpoint.tokenizer(), compute.seed, at_least=at_least, written=own.texts)


def text_in_time(
    checkpoint: Checkpoint,
    text: CalibrationText,
    deadline: Clock,
    *,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> CalibrationText:
    """The text with as many samples as the model can write until the deadline, at least one; the same gives them again.

    A text without `self` is as it was, and so is one that the model cannot write.
    """
    own = OwnText(checkpoint, compute, progress, deadline)
    if all(each.source != OWN for each in parse_sources(text.text)) or (text.text == MIX and own.hindered()):
        return text
    room = text.length - len(bos_ids(checkpoint.tokenizer()))
    return replace(text, samples=max(1, len(own_windows(own.texts, room, int(text.samples)))))


def tokens_of(
    checkpoint: Checkpoint,
    given: Tokens | CalibrationText | Rows | None,
    *,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Tokens:
    """Windows as they are given, or those of a calibration text, of sources by name, or of rows in memory."""
    if isinstance(given, Tokens):
        return given
    text = given if given is None or isinstance(given, CalibrationText) else CalibrationText(source_of(given))
    return calibration_tokens(checkpoint, text, compute=compute, progress=progress)


@dataclass(frozen=True)
class OwnText:
    """What a checkpoint's model writes, as token ids: batch after batch, each kept in the cache under all it depends on.

    deadline: no batch is begun that would not end before it, if each of its texts takes as long as those of the last batch,
    but for the first; so there may be fewer texts, always the same ones in the same order. dry_run: what the model needs in
    order to write is checked, and it writes nothing.
    """

    checkpoint: Checkpoint
    compute: Compute = AUTO
    progress: Progress = silent
    deadline: Clock | None = None
    dry_run: bool = False

    def hindered(self) -> str | None:
        """Why the model cannot write, or is not asked to; None where it can."""
        device, stream = pick_device(self.compute.device), self.compute.stream
        dtype, shared_out = arithmetic(self.compute.dtype, self.checkpoint, device), self.compute.device_map
        if stream or (stream is None and not shared_out and must_stream(self.checkpoint, dtype, device)):
            return "its weights are read layer by layer"
        try:
            self.texts(1)
        except (DataError, OSError) as error:
            return one_line(error)
        return None

    def texts(self, amount: int) -> list[list[int]]:
        """At least so many texts that are not empty, without BOS at their beginning; fewer where the deadline has come."""
        written: list[list[int]] = []
        writer, empty, late = Writer(self.checkpoint, self.compute), 0, False
        if self.dry_run:
            return [writer.stand_in()] * amount
        try:
            for batch in count():
                late = self._too_late(writer, batch)
                if len(written) >= amount or empty == MOST_EMPTY or late:
                    break
                done = f"{min(len(written), amount)} of {amount} texts, " if written else ""
                some = self._batch(writer, batch, under(self.progress, done))
                written, empty = written + some, 0 if some else empty + 1
        finally:
            writer.forget()
        if len(written) < amount and not late:
            raise DataError(
                f"{len(written)} texts, and then only such as end where they begin",
                expected="a model that writes something to calibrate or to heal on",
                fix="name other texts than self",
                where=self.checkpoint.source,
            )
        return written

    def _too_late(self, writer: Writer, number: int) -> bool:
        """Whether there is no time for a batch that is still to be written."""
        if self.deadline is None or number == 0 or self._path(writer, number).exists():
            return False
        return self.deadline.over or self.deadline.left < writer.text_seconds * rows_of(number)

    def _path(self, writer: Writer, number: int) -> Path:
        return cache_directory("own-texts", writer.key) / f"{number:05}.json"

    def _batch(self, writer: Writer, number: int, progress: Progress) -> list[list[int]]:
        """The texts of a batch, those that are empty left out; from the cache, if they were written before."""
        path = self._path(writer, number)
        mark_used(path.parent)
        if not path.exists():
            began = self.now()
            texts = writer.written(number, progress)
            save_json(path, {"texts": texts, "seconds": self.now() - began})
        kept = json.loads(path.read_text(encoding="utf-8"))
        writer.text_seconds = kept["seconds"] / rows_of(number)
        return list(kept["texts"])

    @property
    def now(self) -> Callable[[], float]:
        return self.deadline.now if self.deadline else time.monotonic


class Writer:
    """A model that writes, loaded when it first does."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        self.checkpoint, self.seed, self.device_map = checkpoint, compute.seed, compute.device_map
        self.tokenizer, self.device = checkpoint.tokenizer(), pick_device(compute.device)
        self.dtype = arithmetic(compute.dtype, checkpoint, self.device)
        self.model: PreTrainedModel | None = None
        self.text_seconds = 0.0  # that each text of the last batch took, whenever it was written

    @cached_property
    def key(self) -> str:
        """The name of what is kept. A template may tell the date, which is no part of it."""
        return content_key(
            "own texts",
            model=self.checkpoint.identity,
            seed=self.seed,
            dtype=str(self.dtype),
            device=[
                torch.device(self.device).type,
                self.device_map,
            ],  # layers that are shared out lie, and round, otherwise
            draws=DRAWS,
            kept=["texts", "seconds"],
            rooms=[BATCHES, QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS],
        )

    def written(self, number: int, progress: Progress) -> list[list[int]]:
        """The texts of a batch that are not empty, without BOS."""
        rows, most = rows_of(number), self._most
        opening = self._opening
        if not self.tokenizer.chat_template:
            room = min(TEXT_TOKENS, most - 1)
            texts = self._write([opening] * rows, room, f"{number} texts", progress)
            return [text for text in texts if len(text) > 1]
        room = max(1, min(QUESTION_TOKENS, (most - len(opening)) // 2))
        asked = self._write([opening] * rows, room, f"{number} questions", progress)
        words = [self.tokenizer.decode(question, skip_special_tokens=True).strip() for question in asked]
        prompts = [self._encoded(self._rendered(question, answer=True)) for question in words if question]
        prompts = [prompt for prompt in prompts if len(prompt) + 1 < most]
        room = min(
            ANSWER_TOKENS, most - max(map(len, prompts), default=0)
        )  # a batch may go on until its last has ended
        answers = self._write(prompts, room, f"{number} answers", progress)
        whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True) if len(answer) > 1]
        return [text[len(bos_ids(self.tokenizer)) :] for text in whole]

    def stand_in(self) -> list[int]:
        """As many tokens as the longest text has, without the model."""
        opening = self._opening
        if not self.device_map:
            self.checkpoint.check_room(self.dtype, self.device)
        return opening[:1] * self._most

    def forget(self) -> None:
        """Give the model's memory back: what comes next asks how much there is."""
        if self.model is None:
            return
        self.model = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _write(self, prompts: Sequence[Sequence[int]], room: int, what: str, progress: Progress) -> list[list[int]]:
        """What follows each prompt; what: the batch and its part, which have draws of their own."""
        if self.model is None:
            self.model = self.checkpoint.model(dtype=self.dtype, device=self.device, device_map=self.device_map)
        seed, stage = draw_seed(self.seed, what), f"writing {what.partition(' ')[2]}"
        return generate(self.model, prompts, [room] * len(prompts), seed=seed, stage=stage, progress=progress)

    @property
    def _most(self) -> int:
        """Tokens of the longest text: as many as the model has positions for."""
        whole = max(TEXT_TOKENS, QUESTION_TOKENS + ANSWER_TOKENS + len(self._opening) + MARGIN)
        return whole if self.checkpoint.positions is None else min(whole, self.checkpoint.positions)

    @property
    def _opening(self) -> list[int]:
        """What a question, or a text, is written after, BOS included."""
        if self.tokenizer.chat_template:
            before, mark, _ = self._rendered(MARK).partition(MARK)
            first = self._encoded(before) if mark else []
        else:
            ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            first = [token for token in ends if token is not None][:1]
        if not first:
            raise DataError(
                "neither",
                expected="a chat template with a place for a question, or a BOS or EOS token, to write after",
                fix="name other texts than self",
                where=self.checkpoint.source,
            )
        return first

    def _rendered(self, words: str, *, answer: bool = False) -> str:
        """A user's words in the model's template; answer: with what opens the answer."""
        return render([{"role": "user", "content": words}], self.tokenizer, answer=answer)

    def _encoded(self, text: str) -> list[int]:
        """Token ids, with one BOS where the tokenizer puts it before text, whether or not the template has it, too."""
        ids, bos = encode(self.tokenizer, text), bos_ids(self.tokenizer)
        return ids if bos and ids[:1] == bos else [*bos, *ids]
