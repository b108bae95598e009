"""Cached activations of frozen layers, and cached teacher logits: packed on disk, under a digest of all they depend on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from torch import Tensor, nn

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder import Decoder
from shortstack.decoder.batching import by_length
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.losses import check_states, likeliest
from shortstack.errors import ArchitectureError
from shortstack.healing.config import HealingConfig
from shortstack.healing.learner import counted, padded
from shortstack.machine.cache import MARGIN_BYTES, cache_directory, content_key, make_room, mark_used
from shortstack.machine.device import Compute, Dtype
from shortstack.machine.files import atomic_write, check_disk
from shortstack.machine.formats import size
from shortstack.machine.progress import Progress, paced, silent


@dataclass(frozen=True)
class Activations:
    """Hidden states of many samples in a file; states[i] is [length of sample i, width], in their own dtype."""

    path: Path
    lengths: tuple[int, ...]
    width: int
    dtype: torch.dtype

    def __getitem__(self, sample: int) -> Tensor:
        """Copy one sample's states, [length, width], out of the file."""
        start = self._starts[sample]
        rows = torch.from_numpy(self._map[start : start + self.lengths[sample]].copy())
        return rows.view(self.dtype)

    @property
    def kept(self) -> bool:
        """Whether they are on disk; marks them as used."""
        exists = self.path.exists() and self.path.stat().st_size == self.size
        if exists:
            mark_used(self.path)
        return exists

    @property
    def size(self) -> int:
        return sum(self.lengths) * self._row_bytes

    @cached_property
    def _map(self) -> numpy.ndarray[Any, Any]:
        shape = sum(self.lengths), self._row_bytes
        return numpy.memmap(self.path, dtype=numpy.uint8, mode="r", shape=shape)

    @cached_property
    def _starts(self) -> Sequence[int]:
        return list(itertools.accumulate((0, *self.lengths)))

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @contextmanager
    def written(self) -> Iterator[Callable[[int, Tensor], None]]:
        """Yield put(sample, states), to be called for every sample in any order; the file appears at the end."""
        with atomic_write(self.path) as partial, partial.open("wb") as file:

            def put(sample: int, states: Tensor) -> None:
                if states.shape != (self.lengths[sample], self.width):
                    form = f"{tuple(states.shape)}, not [{self.lengths[sample]}, {self.width}]"
                    raise ArchitectureError(f"hidden states are {form}; train all layers", option="train_last")
                file.seek(self._starts[sample] * self._row_bytes)
                file.write(states.to(self.dtype).contiguous().cpu().view(torch.uint8).numpy().tobytes())

            yield put


def activations_under(key: str, lengths: Sequence[int], width: int, dtype: torch.dtype) -> Activations:
    """Return the activations of a key, on disk or not yet."""
    return Activations(cache_directory("activations") / f"{key}.states", tuple(lengths), width, dtype)


def check_room(nbytes: int) -> None:
    """Make room in the cache, or raise DiskFullError before anything is computed."""
    if nbytes:
        make_room(nbytes)
        fix = "free some space, set SHORTSTACK_CACHE to another disk, or use fewer samples"
        check_disk(cache_directory("activations"), nbytes + MARGIN_BYTES, fix=fix)


@dataclass(frozen=True)
class Frozen:
    """Samples, by number, and what is computed from them before training.

    first: the layer that the states enter; without states if it is 0. teacher: the most likely next tokens after each
    token that counts, and their log probabilities. text: whether the next-token loss is added to the teacher's.
    """

    examples: Sequence[Example]
    first: int
    states: Activations | None = None
    teacher: Activations | None = None
    text: bool = False

    @property
    def lengths(self) -> list[int]:
        return [len(example.ids) for example in self.examples]

    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Return a Learner's arguments for some samples, padded."""
        batch = padded([self.examples[sample] for sample in samples])
        if self.states:
            states = [self.states[sample] for sample in samples]
            batch["hidden"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
        if self.teacher:
            tokens, log_p = _unpacked(torch.cat([self.teacher[sample] for sample in samples]))
            batch |= {"teacher_tokens": tokens, "teacher_log_p": log_p}
        if self.text:
            batch["made"] = torch.tensor([self.examples[sample].made for sample in samples])
        return batch


def _packed(tokens: Tensor, log_p: Tensor) -> Tensor:
    """Pack ids and log probabilities [tokens, k] into one array of float32; the ids are bits in it."""
    return torch.cat([tokens.int().view(torch.float32), log_p.float()], dim=-1)


def _unpacked(rows: Tensor) -> tuple[Tensor, Tensor]:
    tokens, log_p = rows.chunk(2, dim=-1)
    return tokens.contiguous().view(torch.int32).long(), log_p


@dataclass(frozen=True)
class Freezer:
    """Computes a Frozen; teacher: for distillation alone."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: str
    config: HealingConfig = field(default_factory=lambda: HealingConfig())
    teacher: Checkpoint | None = None
    progress: Progress = silent

    def planned(self, examples: Sequence[Example], first: int) -> Frozen:
        """Name the files without computing them; weights are read for their digest."""
        dtype, device = str(self.dtype).removeprefix("torch."), torch.device(self.device).type
        settings = {"dtype": dtype, "device": device, "ids": [example.ids for example in examples]}
        frozen = Frozen(examples, first, text=self.config.next_token_weight > 0)
        if first:
            key = content_key("states", model=self.checkpoint.identity, at=first, **settings)
            states = activations_under(key, frozen.lengths, self.checkpoint.hidden_width, self.dtype)
            frozen = replace(frozen, states=states)
        if self.teacher:
            masks = [counted(example) for example in examples]
            of = [self.top_k, self.config.temperature]
            key = content_key("teacher", model=self.teacher.identity, learnt=masks, of=of, **settings)
            teacher = activations_under(key, [sum(mask) for mask in masks], 2 * self.top_k, torch.float32)
            frozen = replace(frozen, teacher=teacher)
        return frozen

    @cached_property
    def top_k(self) -> int:
        """Tokens of the teacher that are kept: at least one of the vocabulary is not."""
        return min(self.config.top_k, self.checkpoint.vocabulary - 1)

    @torch.no_grad()
    def fill(self, frozen: Frozen) -> Frozen:
        check_room(missing_bytes(frozen))
        if frozen.states and not frozen.states.kept:
            self._walk(frozen, frozen.states, "running the frozen layers", self.checkpoint, frozen.first)
        if self.teacher and frozen.teacher and not frozen.teacher.kept:
            self._walk(frozen, frozen.teacher, "running the teacher", self.teacher, self.teacher.anatomy.layers)
        return frozen

    def _walk(self, frozen: Frozen, file: Activations, stage: str, model: Checkpoint, layers: int) -> None:
        """Write the states or predictions of all samples after so many layers into the file."""
        dtype = cast("Dtype", str(self.dtype).removeprefix("torch."))
        decoder = Decoder.open(model, Compute(dtype=dtype, device=self.device))
        if file is frozen.states:
            decoder.check_bare(train_all(self.checkpoint))
        batches = []
        for numbers in by_length(frozen.lengths):
            examples = [frozen.examples[sample] for sample in numbers]
            batches.append((numbers, examples, padded(examples)["input_ids"].to(decoder.device)))
        turns = decoder.memory_batches(batches, tokens=max(ids.numel() for *_, ids in batches), streams=1)
        progress, note = paced(self.progress, sum(frozen.lengths)), f"{size(file.size)} to disk"
        rows_of = self._predictions if file is frozen.teacher else _states
        with file.written() as put:
            for number, turn in enumerate(turns):
                walks = [decoder.enter(ids) for *_, ids in turn]
                for layer in decoder.through(walks, range(layers)):
                    progress(stage, number * layers + layer + 1, len(turns) * layers, note=note)
                for (numbers, examples, _), walk in zip(turn, walks, strict=True):
                    check_states(walk.hidden[UNPRUNED], *walk.ids.shape)
                    for sample, rows in zip(numbers, rows_of(decoder, examples, walk.hidden[UNPRUNED]), strict=True):
                        put(sample, rows)

    def _predictions(self, decoder: Decoder, examples: Sequence[Example], hidden: Tensor) -> list[Tensor]:
        """Return the most likely tokens, packed, after each token that counts; hidden: [samples, length, width]."""
        masks = [torch.tensor(counted(example)[1:]) for example in examples]
        states = [row[: len(mask)][mask.to(row.device)] for row, mask in zip(hidden, masks, strict=True)]
        together = torch.cat(states)
        chunks = together.split(decoder.chunk_rows(together))
        top = [likeliest(decoder.token_logits(chunk), self.top_k, self.config.temperature) for chunk in chunks]
        packed = torch.cat([_packed(tokens, log_p) for tokens, log_p in top])
        return list(packed.split([len(rows) for rows in states]))


def _states(_decoder: Decoder, examples: Sequence[Example], hidden: Tensor) -> list[Tensor]:
    return [row[: len(example.ids)] for example, row in zip(examples, hidden, strict=True)]


def missing_bytes(frozen: Frozen) -> int:
    files = [file for file in (frozen.states, frozen.teacher) if file]
    return sum(file.size for file in files if not file.kept)


def train_all(checkpoint: Checkpoint) -> str:
    """Return the advice for models whose layers cannot be frozen."""
    return f"train all layers: set train_last to {checkpoint.anatomy.layers}"
