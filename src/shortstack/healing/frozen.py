"""All that never changes while a model heals: the output of its frozen layers, and a teacher's predictions.

Both are kept on disk packed and without padding, under a digest of all that they depend on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder import Decoder
from shortstack.decoder.batching import by_length
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.losses import likeliest
from shortstack.errors import CheckpointError
from shortstack.healing.activations import Activations, activations_under, check_room, keeping
from shortstack.healing.learner import counted, padded
from shortstack.healing.schedule import Objective
from shortstack.machine.cache import content_key
from shortstack.machine.device import Compute, Dtype
from shortstack.machine.progress import Progress, paced, silent


@dataclass(frozen=True)
class Frozen:
    """The samples, and what is computed of them before training; samples go by their numbers.

    first: the layer that the states enter; there are none where it is 0. teacher: the likeliest next tokens after each
    token that counts, and their log probabilities.
    """

    examples: Sequence[Example]
    first: int
    states: Activations | None = None
    teacher: Activations | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(example.ids) for example in self.examples]

    @property
    def files(self) -> list[Activations]:
        """The files that are on disk, or will be."""
        return [file for file in (self.states, self.teacher) if file]

    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The arguments of a Learner for some samples, padded."""
        batch = padded([self.examples[sample] for sample in samples])
        if self.states:
            states = [self.states[sample] for sample in samples]
            batch["hidden"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
        if self.teacher:
            tokens, log_p = _unpacked(torch.cat([self.teacher[sample] for sample in samples]))
            batch |= {"teacher_tokens": tokens, "teacher_log_p": log_p}
        return batch


def _packed(tokens: Tensor, log_p: Tensor) -> Tensor:
    """Ids and log probabilities [tokens, k] as one array of float32; the ids are bits in it."""
    return torch.cat([tokens.int().view(torch.float32), log_p.float()], dim=-1)


def _unpacked(rows: Tensor) -> tuple[Tensor, Tensor]:
    tokens, log_p = rows.chunk(2, dim=-1)
    return tokens.contiguous().view(torch.int32).long(), log_p


@dataclass(frozen=True)
class Freezer:
    """Computes a Frozen, in a dtype and on a device; teacher: only where the objective learns from it."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: str
    objective: Objective = field(default_factory=Objective)
    teacher: Checkpoint | None = None
    progress: Progress = silent

    def planned(self, examples: Sequence[Example], first: int) -> Frozen:
        """Name the files without computing them; only the weights are read, for their digest."""
        dtype, device = str(self.dtype).removeprefix("torch."), torch.device(self.device).type
        known = {"dtype": dtype, "device": device, "ids": [example.ids for example in examples]}
        frozen = Frozen(examples, first)
        if first:
            key = content_key("states", model=self.checkpoint.identity, at=first, **known)
            states = activations_under(key, frozen.lengths, self.checkpoint.width, dtype)
            frozen = replace(frozen, states=states)
        if self.teacher:
            _check_vocabulary(self.checkpoint, self.teacher)
            learnt = [counted(example) for example in examples]
            of = [self.top_k, self.objective.temperature]
            key = content_key("teacher", model=self.teacher.identity, learnt=learnt, of=of, **known)
            teacher = activations_under(key, [sum(mask) for mask in learnt], 2 * self.top_k, "float32")
            frozen = replace(frozen, teacher=teacher)
        return frozen

    @cached_property
    def top_k(self) -> int:
        """How many of the teacher's likeliest tokens are kept: at least one of the vocabulary is among the others."""
        return min(self.objective.top_k, self.checkpoint.vocabulary - 1)

    @torch.no_grad()
    def fill(self, frozen: Frozen) -> Frozen:
        """Compute what is not on disk yet."""
        check_room(missing_bytes(frozen))
        if frozen.states and not frozen.states.kept:
            _Walk(self, frozen, "walking the frozen layers", self.checkpoint, frozen.states, frozen.first).run()
        if self.teacher and frozen.teacher and not frozen.teacher.kept:
            layers = self.teacher.anatomy.layers
            _Walk(self, frozen, "asking the teacher", self.teacher, frozen.teacher, layers).run()
        return frozen


def missing_bytes(frozen: Frozen) -> int:
    """Bytes of what is not on disk yet."""
    return sum(file.size for file in frozen.files if not file.kept)


@dataclass(frozen=True)
class _Walk:
    """All samples through so many layers of a model; what is kept of them goes into the file."""

    freezer: Freezer
    frozen: Frozen
    stage: str
    checkpoint: Checkpoint
    file: Activations
    layers: int

    def run(self) -> None:
        dtype = cast("Dtype", str(self.freezer.dtype).removeprefix("torch."))
        compute = Compute(dtype=dtype, device=self.freezer.device)
        decoder = Decoder.open(self.checkpoint, compute)
        decoder.check_bare(train_all(self.freezer.checkpoint))
        batches = [(numbers, self._ids(numbers, decoder)) for numbers in by_length(self.frozen.lengths)]
        progress = paced(self.freezer.progress, sum(self.frozen.lengths))
        turns = decoder.memory_batches(batches, tokens=max(ids.numel() for _, ids in batches), streams=1)
        note = f"{self.file.size / 1e6:,.0f} MB to disk"
        with keeping(self.file) as put:
            for number, turn in enumerate(turns):
                walks = [decoder.enter(ids) for _, ids in turn]
                for layer in decoder.through(walks, range(self.layers)):
                    progress(self.stage, number * self.layers + layer + 1, len(turns) * self.layers, note=note)
                for (numbers, _), walk in zip(turn, walks, strict=True):
                    for sample, rows in zip(numbers, self._rows(decoder, numbers, walk.hidden[UNPRUNED]), strict=True):
                        put(sample, rows)

    def _ids(self, numbers: Sequence[int], decoder: Decoder) -> Tensor:
        return padded([self.frozen.examples[number] for number in numbers])["input_ids"].to(decoder.device)

    def _rows(self, decoder: Decoder, numbers: Sequence[int], hidden: Tensor) -> Iterator[Tensor]:
        """Return what is kept of each sample, of states [samples, length, width]."""
        if self.file is self.frozen.states:
            yield from (row[: self.frozen.lengths[number]] for number, row in zip(numbers, hidden, strict=True))
            return
        learnt = [torch.tensor(counted(self.frozen.examples[number])[1:]) for number in numbers]
        states = [row[: len(some)][some.to(row.device)] for row, some in zip(hidden, learnt, strict=True)]
        top = top_tokens(decoder, torch.cat(states), self.freezer.top_k, self.freezer.objective.temperature)
        yield from _packed(*top).split([len(some) for some in states])


def top_tokens(decoder: Decoder, states: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The likeliest next tokens and their log probabilities, [tokens, top_k], given states [tokens, width]."""
    parts = [
        likeliest(decoder.token_logits(some), top_k, temperature) for some in states.split(decoder.chunk_rows(states))
    ]
    tokens, log_p = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(log_p)


def train_all(checkpoint: Checkpoint) -> str:
    """Suggest training all layers, for models whose layers cannot be frozen."""
    return f"train all layers: set last to {checkpoint.anatomy.layers}"


def _check_vocabulary(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    ours, theirs = checkpoint.vocabulary, teacher.vocabulary
    if ours != theirs:
        raise CheckpointError(
            theirs,
            expected=f"a teacher with the vocabulary of the model that heals, {ours} tokens",
            fix="name the model it was cut from",
            where=teacher.directory,
        )
