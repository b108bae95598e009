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
from collections.abc import Sequence
from dataclasses import replace
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
    writer = Writer(base_model, compute)
    room = text.length - len(bos_ids(writer.tokenizer))
    needed = int(text.samples or 0) if windows is None else windows
    try:
        if MIX in text.weights:
            writer.check_unstreamed(compute.stream)
        writer.write(room * needed, deadline, progress)
    except (DataError, OSError) as error:
        if MIX not in text.weights:
            raise
        text = text.replacing({OWN: None})
        said = f"{MIX} is reduced to {text.name}, since the model generates no text: {one_line(error)}"
        warnings.warn(said, ShortstackWarning, stacklevel=2)
        return text
    finally:
        writer.forget()
    text = text.replacing({OWN: str(writer.file)})
    written = len(own_windows(str(writer.file), room, needed))
    return replace(text, samples=max(1, written)) if windows is None and written < needed else text


class Writer:
    """A model that writes, loaded when it first does."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        self.checkpoint, self.seed, self.device_map = checkpoint, compute.seed, compute.device_map
        self.tokenizer, self.device = checkpoint.tokenizer(), pick_device(compute.device)
        self.dtype = arithmetic(compute.dtype, checkpoint, self.device)
        self.model: PreTrainedModel | None = None
        key = content_key(  # a template may tell the date, which is no part of it
            "own text, a batch in each line",
            model=checkpoint.identity,
            seed=self.seed,
            dtype=str(self.dtype),
            device=[torch.device(self.device).type, self.device_map],  # shared out, layers lie and round otherwise
            draws=DRAWS,
            rooms=[BATCHES, QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS],
        )
        self.file = own_file(key)

    def check_unstreamed(self, stream: bool | None) -> None:
        """Refuse a model that is read layer by layer: it is not loaded to write."""
        may_stream = stream is None and not self.device_map
        if stream or (may_stream and must_stream(self.checkpoint, self.dtype, self.device)):
            raise DataError("its weights are read layer by layer")

    def write(self, tokens: int, deadline: Clock | None = None, progress: Progress = silent) -> None:
        """Extend the file, a batch in each line, until it has this many tokens; or as far as there is time."""
        now = deadline.now if deadline else time.monotonic
        batches = self._batches()
        while (size := sum(len(ids) for batch in batches for ids in batch["texts"])) < tokens:
            rows = BATCHES[min(len(batches), len(BATCHES) - 1)]
            if deadline and batches and (deadline.over or deadline.left < rows * batches[-1]["seconds"]):
                break
            began = now()
            texts = self._batch(len(batches), rows, under(progress, f"{size:,} of {tokens:,} tokens, "))
            if not texts:
                raise DataError(f"{self.checkpoint.source} writes only empty texts; name other texts than self")
            batches += [{"texts": texts, "seconds": (now() - began) / rows}]
            batches = max(batches, self._batches(), key=len)  # another process may have written more
            with atomic_write(self.file) as partial:
                partial.write_text("".join(f"{json.dumps(batch)}\n" for batch in batches))
        mark_used(self.file)

    def _batches(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def _batch(self, number: int, rows: int, progress: Progress) -> list[list[int]]:
        """Write the texts of a batch; return those that are not empty, without BOS."""
        opening, bos = self._opening, len(bos_ids(self.tokenizer))
        most = max(TEXT_TOKENS, QUESTION_TOKENS + ANSWER_TOKENS + len(opening) + MARGIN)
        most = min(most, self.checkpoint.positions or most)
        if not self.tokenizer.chat_template:
            texts = self._generate([opening] * rows, min(TEXT_TOKENS, most - 1), f"{number} texts", progress)
            return [text for text in texts if len(text) > 1]
        room = max(1, min(QUESTION_TOKENS, (most - len(opening)) // 2))
        questions = self._generate([opening] * rows, room, f"{number} questions", progress)
        words = [self.tokenizer.decode(question, skip_special_tokens=True).strip() for question in questions]
        prompts = [self._encoded(self._rendered(question, answer=True)) for question in words if question]
        prompts = [prompt for prompt in prompts if len(prompt) + 1 < most]
        longest = max(map(len, prompts), default=0)  # a batch may go on until its last has ended
        answers = self._generate(prompts, min(ANSWER_TOKENS, most - longest), f"{number} answers", progress)
        pairs = zip(prompts, answers, strict=True)
        return [[*prompt, *answer][bos:] for prompt, answer in pairs if len(answer) > 1]

    def forget(self) -> None:
        """Free the model's memory: what comes next asks how much there is."""
        self.model = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _generate(self, prompts: Sequence[Sequence[int]], room: int, what: str, progress: Progress) -> list[list[int]]:
        """Generate after each prompt; what: the batch and its part, which have draws of their own."""
        if self.model is None:
            self.model = self.checkpoint.model(dtype=self.dtype, device=self.device, device_map=self.device_map)
        seed, stage = draw_seed(self.seed, what), f"writing {what.partition(' ')[2]}"
        return generate(self.model, prompts, [room] * len(prompts), seed=seed, stage=stage, progress=progress)

    @property
    def _opening(self) -> list[int]:
        """What comes before all that the model writes."""
        if self.tokenizer.chat_template:
            before, mark, _ = self._rendered(MARK).partition(MARK)
            first = self._encoded(before) if mark else []
        else:
            ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            first = [token for token in ends if token is not None][:1]
        if not first:
            lacks = "no chat template with a place for a question, and no BOS or EOS token"
            raise DataError(f"{self.checkpoint.source} has {lacks}; name other texts than self")
        return first

    def _rendered(self, words: str, *, answer: bool = False) -> str:
        return render([{"role": "user", "content": words}], self.tokenizer, answer=answer)

    def _encoded(self, text: str) -> list[int]:
        """Tokenise text, with one BOS where the tokenizer puts it first, whether or not the template has it, too."""
        ids, bos = encode(self.tokenizer, text), bos_ids(self.tokenizer)
        return ids if bos and ids[:1] == bos else [*bos, *ids]
