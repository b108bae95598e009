"""Text that a base model writes itself: chats, questions as well as answers, or what it says after nothing.

For a chat model its own template with an empty user turn is the prompt for a question, and that question the prompt for an
answer (Magpie, arXiv 2406.08464); others write from BOS (self-calibration, arXiv 2410.17170). All is drawn at temperature 1
from the whole distribution, by a seed, and kept as token ids in a .jsonl file of the cache.
"""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shortstack.architecture.anatomy import check_positions
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text, Tokens
from shortstack.data.examples import render
from shortstack.data.sources import OWN, own_file
from shortstack.data.text import MIX
from shortstack.data.tokens import bos_ids, encode, own_windows
from shortstack.decoder.generation import DRAWS, ROWS, draw_seed, generate
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import DataError, ShortstackWarning, one_line
from shortstack.machine.cache import content_key, mark_used
from shortstack.machine.clock import Clock
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import atomic_write
from shortstack.machine.progress import Progress, silent, under

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS = 96, 192, 256
MOST_EMPTY = 4  # batches of empty texts, one after the other, before a model is said to write nothing
BATCHES = (16, ROWS)  # texts of the first and of each further batch: calibration takes few
MARGIN = 64  # of a template, beside what opens a question
MARK = "QqQ"  # stands in a template where a user's words go


def read_tokens(
    checkpoint: Checkpoint,
    text: Tokens | Text | Any = None,
    *,
    at_least: int | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Tokens:
    """Read the windows of a text, also of its source alone; Tokens stay as they are. at_least: as in Tokens.read()."""
    if isinstance(text, Tokens):
        return text
    text = text if isinstance(text, Text) else Text() if text is None else Text(text)
    check_positions(checkpoint, text.length, "length")
    text = with_own_text(text, checkpoint, compute=compute, progress=progress)
    return text.tokens(checkpoint.tokenizer(), compute.seed, at_least=at_least)


def with_own_text(
    text: Text,
    base_model: Checkpoint,
    *,
    windows: int | None = None,
    deadline: Clock | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Text:
    """Have the base model write `self`, where the text has it, and return the text with that file of the cache in its place.

    windows: of the text's length that are needed; None: its samples, of which there are fewer where the deadline ends the
    writing. Of `mix` the rest is returned, with a warning, if the model cannot write.
    """
    if not text.own:
        return text
    text.check()
    writer = Writer(base_model, compute, deadline, progress)
    room = text.length - len(bos_ids(writer.tokenizer))
    needed = int(text.samples or 0) if windows is None else windows
    try:
        reason = writer.streams(compute.stream) if MIX in text.names else ""
        if not reason:
            writer.write(room * needed)
    except (DataError, OSError) as error:
        reason = one_line(error)
        if MIX not in text.names:
            raise
    finally:
        writer.forget()
    if reason:
        said = f"{MIX} is reduced to {text.replacing({OWN: None}).name}, since the model generates no text: {reason}"
        warnings.warn(said, ShortstackWarning, stacklevel=2)
        return text.replacing({OWN: None})
    text = text.replacing({OWN: str(writer.file)})
    written = len(own_windows(str(writer.file), room, needed))
    return replace(text, samples=max(1, written)) if windows is None and written < needed else text


class Writer:
    """A model that writes, loaded when it first does."""

    def __init__(
        self, checkpoint: Checkpoint, compute: Compute, deadline: Clock | None = None, progress: Progress = silent
    ) -> None:
        self.checkpoint, self.seed, self.device_map = checkpoint, compute.seed, compute.device_map
        self.deadline, self.progress = deadline, progress
        self.tokenizer, self.device = checkpoint.tokenizer(), pick_device(compute.device)
        self.dtype = arithmetic(compute.dtype, checkpoint, self.device)
        self.model: PreTrainedModel | None = None
        key = content_key(  # a template may tell the date, which is no part of it
            "own text",
            model=checkpoint.identity,
            seed=self.seed,
            dtype=str(self.dtype),
            device=[torch.device(self.device).type, self.device_map],  # shared out, layers lie and round otherwise
            draws=DRAWS,
            rooms=[BATCHES, QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS],
        )
        self.file: Path = own_file(key)

    def streams(self, stream: bool | None) -> str:
        """Return why the model is not loaded to write; empty where it is."""
        streamed = stream is None and not self.device_map and must_stream(self.checkpoint, self.dtype, self.device)
        return "its weights are read layer by layer" if stream or streamed else ""

    def write(self, tokens: int) -> None:
        """Extend the file until it has this many tokens, batch by batch; with a deadline as far as there is time."""
        first, more = BATCHES
        while (size := _size(texts := self._written())) < tokens:
            if len(texts) > MOST_EMPTY * more and not any(text["ids"] for text in texts[-MOST_EMPTY * more :]):
                raise DataError(f"{self.checkpoint.source} writes only empty texts; name other texts than self")
            batch, rows = (1 + (len(texts) - first) // more, more) if texts else (0, first)
            if self.deadline and texts and (self.deadline.over or self.deadline.left < rows * texts[-1]["seconds"]):
                break
            now = self.deadline.now if self.deadline else time.monotonic
            began = now()
            written = [*self._texts(batch, rows, under(self.progress, f"{size:,} of {tokens:,} tokens, "))]
            seconds = (now() - began) / rows
            texts += [{"ids": ids, "seconds": seconds} for ids in written + [[]] * (rows - len(written))]
            if len(texts) > len(self._written()):  # another process may have written the same and more
                with atomic_write(self.file) as partial:
                    partial.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
        mark_used(self.file)

    def _written(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def _texts(self, number: int, rows: int, progress: Progress) -> Iterator[list[int]]:
        """Write the texts of a batch; yield those that are not empty, without BOS."""
        most, opening, bos = self._most, self._opening, len(bos_ids(self.tokenizer))
        if not self.tokenizer.chat_template:
            room = min(TEXT_TOKENS, most - 1)
            texts = self._write([opening] * rows, room, f"{number} texts", progress)
            return (text for text in texts if len(text) > 1)
        room = max(1, min(QUESTION_TOKENS, (most - len(opening)) // 2))
        questions = self._write([opening] * rows, room, f"{number} questions", progress)
        words = [self.tokenizer.decode(question, skip_special_tokens=True).strip() for question in questions]
        prompts = [self._encoded(self._rendered(question, answer=True)) for question in words if question]
        prompts = [prompt for prompt in prompts if len(prompt) + 1 < most]
        longest = max(map(len, prompts), default=0)  # a batch may go on until its last has ended
        answers = self._write(prompts, min(ANSWER_TOKENS, most - longest), f"{number} answers", progress)
        pairs = zip(prompts, answers, strict=True)
        return ([*prompt, *answer][bos:] for prompt, answer in pairs if len(answer) > 1)

    def forget(self) -> None:
        """Free the model's memory: what comes next asks how much there is."""
        if self.model is None:
            return
        self.model = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _write(self, prompts: Sequence[Sequence[int]], room: int, what: str, progress: Progress) -> list[list[int]]:
        """Generate after each prompt; what: the batch and its part, which have draws of their own."""
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
        if self.tokenizer.chat_template:
            before, mark, _ = self._rendered(MARK).partition(MARK)
            first = self._encoded(before) if mark else []
        else:
            ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            first = [token for token in ends if token is not None][:1]
        if not first:
            raise DataError(
                f"{self.checkpoint.source} has no chat template with a place for a question, and no BOS or EOS token to "
                "write after; name other texts than self"
            )
        return first

    def _rendered(self, words: str, *, answer: bool = False) -> str:
        """Render a user's words in the model's template; answer: with what opens the answer."""
        return render([{"role": "user", "content": words}], self.tokenizer, answer=answer)

    def _encoded(self, text: str) -> list[int]:
        """Tokenise text, with one BOS where the tokenizer puts it first, whether or not the template has it, too."""
        ids, bos = encode(self.tokenizer, text), bos_ids(self.tokenizer)
        return ids if bos and ids[:1] == bos else [*bos, *ids]


def _size(texts: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(text["ids"]) for text in texts)
