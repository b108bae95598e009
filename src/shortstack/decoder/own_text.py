"""Text that a model writes itself: chats, questions as well as answers, or what a base model says after nothing.

For a chat model its own template with an empty user turn is the prompt for a question, and that question the prompt for an
answer (Magpie, arXiv 2406.08464); a base model writes from BOS (self-calibration, arXiv 2410.17170). All is drawn at
temperature 1 from the whole distribution, by a seed, and kept in the cache as it is written.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shortstack.architecture.positions import check_positions
from shortstack.checkpoint import Checkpoint
from shortstack.data import CalibrationText, Tokens
from shortstack.data.examples import render
from shortstack.data.mixture import MIX, READ
from shortstack.data.tokens import bos_ids, encode
from shortstack.decoder.generation import ROWS, generate
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import DataError, parameter
from shortstack.machine.cache import cache_directory, content_key
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import save_json
from shortstack.machine.progress import Progress, silent, under

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS = 96, 192, 256
MOST_EMPTY = 4  # batches of nothing after which a model is said to write nothing
BATCHES = (16, 48, ROWS)  # texts of the first, the second and each further batch: calibration takes few
MARGIN = 64  # of a template, beside what opens a question
SEED_STEP = 1 << 32  # from one batch to the next: no two seeds share a batch
MARK = "QqQ"  # stands in a template where a user's words go


def calibration_tokens(
    checkpoint: Checkpoint,
    text: CalibrationText | None = None,
    *,
    at_least: int | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Tokens:
    """The windows of a calibration text, and of what the model writes itself where that is a part of it.

    A model that does not fit in memory cannot write: of `mix` it reads the rest, and a warning says so. at_least: as in
    Tokens.read.

    Raises:
        DataError: as CalibrationText.tokens(), or the model writes nothing.
        InputError: `self` was named, and the model does not fit in memory.
    """
    text = text or CalibrationText()
    check_positions(
        checkpoint, text.length, parameter("length"), fix=f"write {parameter('length', checkpoint.positions)}"
    )
    device = pick_device(compute.device)
    if text.text == MIX and must_stream(checkpoint, arithmetic(compute.dtype, checkpoint, device), device):
        warnings.warn(f"the model does not fit in memory, so it writes nothing: calibrating on {READ}", stacklevel=2)
        text = replace(text, text=READ)
    written = OwnText(checkpoint, compute, progress).texts
    return text.tokens(checkpoint.tokenizer(), compute.seed, at_least=at_least, written=written)


@dataclass(frozen=True)
class OwnText:
    """What a checkpoint's model writes, as token ids: batch after batch, each kept in the cache under all it depends on."""

    checkpoint: Checkpoint
    compute: Compute = AUTO
    progress: Progress = silent

    def texts(self, amount: int) -> list[list[int]]:
        """At least so many texts that are not empty, without BOS at their beginning.

        Raises:
            DataError: batch after batch is empty.
            InputError: the model does not fit in memory.
        """
        written: list[list[int]] = []
        for batch in count():
            if len(written) >= amount or (batch == MOST_EMPTY and not written):
                break
            done = f"{min(len(written), amount)} of {amount} texts, "
            written += self._batch(batch, under(self.progress, done if written else ""))
        if not written:
            raise DataError(
                self.checkpoint.source,
                expected="a model that writes something to calibrate or to heal on",
                found="texts that end where they begin",
                fix="name other texts",
            )
        return written

    def _batch(self, number: int, progress: Progress) -> list[list[int]]:
        """The texts of a batch, those that are empty left out; from the cache, if they were written before."""
        path = self._folder / f"{number:05}.json"
        if not path.exists():
            save_json(path, {"texts": self._written(number, progress)})
        texts: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))["texts"]
        return texts

    def _written(self, number: int, progress: Progress) -> list[list[int]]:
        write = partial(generate, self._model, seed=self.compute.seed + number * SEED_STEP, progress=progress)
        opening, rows, most = self._opening, BATCHES[min(number, len(BATCHES) - 1)], self._most
        if not self._tokenizer.chat_template:
            written = write([opening] * rows, [min(TEXT_TOKENS, most - 1)] * rows, stage="writing texts")
            return [text for text in written if len(text) > 1]
        room = max(1, min(QUESTION_TOKENS, (most - len(opening)) // 2))
        asked = write([opening] * rows, [room] * rows, stage="writing questions")
        words = [self._tokenizer.decode(question, skip_special_tokens=True).strip() for question in asked]
        prompts = [self._encoded(self._rendered(question, answer=True)) for question in words if question]
        prompts = [prompt for prompt in prompts if len(prompt) + 1 < most]
        room = min(ANSWER_TOKENS, most - max(map(len, prompts), default=0))  # a batch goes on until its last has ended
        answers = write(prompts, [room] * len(prompts), stage="answering them")
        whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True) if len(answer) > 1]
        return [text[len(bos_ids(self._tokenizer)) :] for text in whole]

    @property
    def _most(self) -> int:
        """Tokens of the longest text: as many as the model has positions for."""
        whole = max(TEXT_TOKENS, QUESTION_TOKENS + ANSWER_TOKENS + len(self._opening) + MARGIN)
        return whole if self.checkpoint.positions is None else min(whole, self.checkpoint.positions)

    @cached_property
    def _opening(self) -> list[int]:
        """What a question, or a text, is written after, BOS included."""
        if self._tokenizer.chat_template:
            return self._encoded(self._rendered(MARK).partition(MARK)[0])
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        if first is None:
            raise DataError(
                self.checkpoint.source,
                expected="a chat template, or a BOS or EOS token to write after",
                found="a tokenizer with none of them",
                fix="name other texts than self",
            )
        return [first]

    def _rendered(self, words: str, *, answer: bool = False) -> str:
        """A user's words in the model's template; answer: with what opens the answer."""
        return render([{"role": "user", "content": words}], self._tokenizer, answer=answer)

    def _encoded(self, text: str) -> list[int]:
        """Token ids, with one BOS where the tokenizer puts it before text, whether or not the template has it, too."""
        ids, bos = encode(self._tokenizer, text), bos_ids(self._tokenizer)
        return ids if bos and ids[:1] == bos else [*bos, *ids]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.checkpoint.tokenizer()

    @cached_property
    def _dtype(self) -> torch.dtype:
        return arithmetic(self.compute.dtype, self.checkpoint, self._device)

    @cached_property
    def _device(self) -> str:
        return pick_device(self.compute.device)

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self.checkpoint.model(dtype=self._dtype, device=self._device)

    @cached_property
    def _folder(self) -> Path:
        checkpoint = self.checkpoint
        key = content_key(
            weights=checkpoint.weights_sha256,
            config=checkpoint.config,
            opening=self._opening,
            template=self._tokenizer.chat_template,
            seed=self.compute.seed,
            dtype=str(self._dtype),
            device=self._device,
            versions=[version(name) for name in ("torch", "transformers")],
            rooms=[BATCHES, QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS],
        )
        return cache_directory("own-texts", key)
