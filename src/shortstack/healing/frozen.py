"""All that never changes while a model heals: the output of its frozen layers, and a teacher's predictions.

Both come from one walk, and are kept on disk packed and without padding, under a digest of all that they depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.checkpoint.weights import read_weight
from shortstack.data import Example
from shortstack.decoder import Decoder
from shortstack.decoder.batching import by_length
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.decoder.losses import likeliest
from shortstack.errors import CheckpointError
from shortstack.healing.activations import Activations, activations_under, check_room, keeping
from shortstack.healing.batches import IGNORED
from shortstack.healing.learner import counted, padded
from shortstack.healing.schedule import Objective
from shortstack.machine.cache import content_key
from shortstack.machine.device import Compute, dtype_named
from shortstack.machine.progress import Progress, paced, silent

Put = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Frozen:
    """The samples, and what is computed of them before training; samples go by their numbers.

    first: the layer that the states enter; there are none where it is 0. teacher: the likeliest next tokens after each
    token that counts, and their log probabilities; teacher_hidden: its hidden states, where the objective needs them.
    """

    examples: Sequence[Example]
    first: int
    states: Activations | None = None
    teacher: Activations | None = None
    teacher_hidden: Activations | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(example.ids) for example in self.examples]

    @property
    def files(self) -> dict[str, Activations]:
        """The files that are on disk, or will be, by the field's name."""
        named = {"states": self.states, "teacher": self.teacher, "teacher_hidden": self.teacher_hidden}
        return {name: file for name, file in named.items() if file}

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files.values())

    @property
    def missing_size(self) -> int:
        """Bytes of what is not on disk yet."""
        return sum(file.size for file in self.files.values() if not file.kept)

    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The arguments of a Learner for some samples, padded."""
        batch = padded([self.examples[sample] for sample in samples])
        if self.states:
            states = [self.states[sample] for sample in samples]
            batch["hidden"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
        if self.teacher:
            tokens, log_p = _unpacked(torch.cat([self.teacher[sample] for sample in samples]))
            batch |= {"teacher_tokens": tokens, "teacher_log_p": log_p}
        if self.teacher_hidden:
            batch["teacher_hidden"] = torch.cat([self.teacher_hidden[sample] for sample in samples])
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
        ids, learnt = [example.ids for example in examples], [counted(example) for example in examples]
        dtype, device = str(self.dtype).removeprefix("torch."), torch.device(self.device).type
        known = {"dtype": dtype, "device": device, "ids": ids}
        frozen = Frozen(examples, first)
        if first:
            key = content_key("states", model=self.checkpoint.identity, at=first, **known)
            states = activations_under(key, frozen.lengths, self.checkpoint.width, dtype)
            frozen = replace(frozen, states=states)
        if self.teacher:
            _check_vocabulary(self.checkpoint, self.teacher)
            top = [self.top_k, self.objective.temperature]
            key = content_key("teacher", model=self.teacher.identity, learnt=learnt, of=top, **known)
            counts = [sum(each) for each in learnt]
            frozen = replace(frozen, teacher=activations_under(f"{key}-top", counts, 2 * self.top_k, "float32"))
            if self.objective.hidden_weight:
                hidden = activations_under(f"{key}-hidden", counts, self._teacher_width, dtype)
                frozen = replace(frozen, teacher_hidden=hidden)
        return frozen

    @cached_property
    def top_k(self) -> int:
        """How many of the teacher's likeliest tokens are kept: at least one of the vocabulary is among the others."""
        return min(self.objective.top_k, self.checkpoint.vocabulary - 1)

    @cached_property
    def _teacher_width(self) -> int:
        """The hidden states' width, which a hidden term needs to be the same in both."""
        assert self.teacher  # noqa: S101  the caller has looked
        ours, theirs = self.checkpoint.width, self.teacher.width
        if ours != theirs:
            raise CheckpointError(
                theirs,
                expected=f"hidden states of {ours} numbers, as the model that heals has",
                fix="leave hidden_weight out",
                where=self.teacher.directory,
            )
        return theirs

    @torch.no_grad()
    def fill(self, frozen: Frozen) -> Frozen:
        """Compute what is not on disk yet: states and teacher from one walk where the one is a cut of the other."""
        check_room(frozen.missing_size)
        with ExitStack() as files:
            puts = {name: files.enter_context(keeping(file)) for name, file in frozen.files.items() if not file.kept}
            for walk in self._walks(frozen, puts):
                walk.run()
        return frozen

    def _walks(self, frozen: Frozen, puts: Mapping[str, Put]) -> Iterator[_Walk]:
        teachers = {name: put for name, put in puts.items() if name != "states"}
        states = {name: put for name, put in puts.items() if name == "states"}
        skipped = self._skipped_in_teacher(frozen.first) if states and teachers else None
        if states and skipped is None:
            yield _Walk(self, frozen, self.checkpoint, states, at=frozen.first)
        if self.teacher and teachers and skipped is None:
            yield _Walk(self, frozen, self.teacher, teachers)
        elif self.teacher and skipped is not None:
            layers = self.teacher.anatomy.layers
            kept = [layer for layer in range(layers) if layer not in skipped]
            yield _Walk(self, frozen, self.teacher, puts, skipped, at=[*kept, layers][frozen.first])

    def _skipped_in_teacher(self, first: int) -> SkippedLayers | None:
        """The layers to skip in the teacher to get what enters layer `first`; None where its weights before it differ."""
        ours, theirs = self.checkpoint, self.teacher
        if not (theirs and ours.record):
            return None
        try:
            skipped = skipped_layers(ours, theirs)
        except CheckpointError:  # not a cut of this teacher
            return None
        kept = [layer for layer in range(theirs.anatomy.layers) if layer not in skipped]
        for name, tensor in ours.tensors.items():
            layer = ours.layer_names.layer_of(name)
            if layer is not None and layer >= first:
                continue
            moved = name if layer is None else ours.layer_names.renumbered(name, kept[layer])
            other = theirs.tensors.get(moved.replace(ours.layer_names.path, theirs.layer_names.path, 1))
            if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype:
                return None
            if not torch.equal(*(read_weight(each).view(torch.uint8) for each in (tensor, other))):
                return None
        return skipped


@dataclass(frozen=True)
class _Walk:
    """All samples through a model, layer by layer, and what is put on disk on the way.

    skipped, at: what enters layer `at` when these layers are skipped is put as states. Without a teacher's puts the walk
    ends there.
    """

    freezer: Freezer
    frozen: Frozen
    checkpoint: Checkpoint
    puts: Mapping[str, Put]
    skipped: SkippedLayers = UNPRUNED
    at: int | None = None

    def run(self) -> None:
        compute = Compute(dtype=dtype_named(str(self.freezer.dtype)), device=self.freezer.device)
        decoder = Decoder.open(self.checkpoint, compute)
        decoder.check_bare(train_all(self.freezer.checkpoint))
        layers = len(decoder.layers) if self._teaches or self.at is None else self.at
        sets = list(dict.fromkeys([UNPRUNED, self.skipped]))
        batches = [(numbers, self._ids(numbers, decoder)) for numbers in by_length(self.frozen.lengths)]
        progress = paced(self.freezer.progress, sum(self.frozen.lengths))
        turns = decoder.memory_batches(batches, tokens=max(ids.numel() for _, ids in batches), streams=len(sets))
        for number, turn in enumerate(turns):
            walks = [decoder.enter(ids, sets) for _, ids in turn]
            for layer in decoder.through(walks, range(layers)):
                if layer + 1 == self.at:
                    self._put_states(turn, [walk.hidden[self.skipped] for walk in walks])
                done, total = number * layers + layer + 1, len(turns) * layers
                progress(self._stage, done, total, note=f"{self.frozen.size / 1e6:,.0f} MB to disk")
            if self._teaches:
                for (numbers, _), walk in zip(turn, walks, strict=True):
                    self._put_teacher(decoder, numbers, walk.hidden[UNPRUNED])

    @property
    def _teaches(self) -> bool:
        return not self.puts.keys() <= {"states"}

    @property
    def _stage(self) -> str:
        return "asking the teacher" if self._teaches else "walking the frozen layers"

    def _ids(self, numbers: Sequence[int], decoder: Decoder) -> Tensor:
        return padded([self.frozen.examples[number] for number in numbers])["input_ids"].to(decoder.device)

    def _put_states(self, turn: Sequence[Any], hidden: Sequence[Tensor]) -> None:
        for (numbers, _), states in zip(turn, hidden, strict=True):
            for number, row in zip(numbers, states, strict=True):
                self.puts["states"](number, row[: self.frozen.lengths[number]])

    def _put_teacher(self, decoder: Decoder, numbers: Sequence[int], hidden: Tensor) -> None:
        learnt = [torch.tensor(counted(self.frozen.examples[number])[1:]) for number in numbers]
        states = [row[: len(some)][some.to(row.device)] for row, some in zip(hidden, learnt, strict=True)]
        top = top_tokens(decoder, torch.cat(states), self.freezer.top_k, self.freezer.objective.temperature)
        rows = {"teacher": _packed(*top).split([len(some) for some in states]), "teacher_hidden": states}
        for name, put in self.puts.items():
            for number, row in zip(numbers, rows.get(name, ()), strict=False):
                put(number, row)


@dataclass(frozen=True)
class OnTheFly:
    """In place of a Frozen: all of it is computed anew for every batch, nothing is on disk, all weights are in memory."""

    freezer: Freezer
    examples: Sequence[Example]
    first: int
    decoder: Decoder
    teacher: Decoder | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(example.ids) for example in self.examples]

    @torch.no_grad()
    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """As Frozen.collate."""
        batch = padded([self.examples[sample] for sample in samples])
        ids = batch["input_ids"].to(self.decoder.device)
        if self.first:
            batch["hidden"] = self.decoder.walk(ids, until=self.first)[UNPRUNED]
        if self.teacher:
            wanted, objective = batch["labels"][:, 1:] != IGNORED, self.freezer.objective
            states = self.teacher.finish(ids)[:, :-1][wanted.to(ids.device)]
            tokens, log_p = top_tokens(self.teacher, states, self.freezer.top_k, objective.temperature)
            batch |= {"teacher_tokens": tokens, "teacher_log_p": log_p}
            batch |= {"teacher_hidden": states} if objective.hidden_weight else {}
        return batch


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
