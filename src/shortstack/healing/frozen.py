"""What never changes while a model heals: the output of its frozen layers, and what a teacher says of each token.

Both come from one walk, are kept on disk packed and without padding, and are found again by what they depend on.
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
from shortstack.decoder.decoder import UNPRUNED, Route, by_length
from shortstack.decoder.losses import likeliest
from shortstack.errors import CheckpointError, parameter
from shortstack.healing.activations import Activations, check_room, keeping, numbered
from shortstack.healing.batches import IGNORED
from shortstack.healing.learner import counted, padded
from shortstack.healing.objective import Objective
from shortstack.machine.cache import content_key
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress, silent

Put = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Frozen:
    """The samples with what is known of them before training: of each, by its number.

    first: the layer that the states enter; there are none where it is 0. teacher: of the tokens that count, the likeliest
    next tokens and their log probabilities; its hidden states where the objective asks for them.
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
    def kept(self) -> tuple[Activations, ...]:
        """What is on disk, or is to be."""
        return tuple(each for each in (self.states, self.teacher, self.teacher_hidden) if each)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(each.size for each in self.kept)

    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """What a Learner takes: padded samples by number, with what is known of them."""
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
    """How a Frozen is made: in which dtype and where, from which checkpoint, and for which objective and teacher."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: str
    objective: Objective = field(default_factory=Objective)
    teacher: Checkpoint | None = None
    progress: Progress = silent

    def planned(self, examples: Sequence[Example], first: int) -> Frozen:
        """What is to be kept, without computing it; only the weights are read, for their digest.

        Raises:
            CheckpointError: the teacher has another vocabulary.
        """
        ids, learnt = [example.ids for example in examples], [counted(example) for example in examples]
        dtype = str(self.dtype).removeprefix("torch.")
        found = Frozen(examples, first)
        if first:
            key = content_key(**_identity(self.checkpoint), at=first, dtype=dtype, ids=ids)
            found = replace(found, states=numbered(key, found.lengths, _width(self.checkpoint), dtype))
        if self.teacher:
            _check_vocabulary(self.checkpoint, self.teacher)
            key = content_key(**_identity(self.teacher), dtype=dtype, ids=ids, learnt=learnt, of=self._asked)
            counts = [sum(each) for each in learnt]
            found = replace(found, teacher=numbered(f"{key}-top", counts, 2 * self.top, "float32"))
            if self.objective.hidden_weight:
                hidden = numbered(f"{key}-hidden", counts, self._teacher_width, dtype)
                found = replace(found, teacher_hidden=hidden)
        return found

    @cached_property
    def top(self) -> int:
        """How many of the teacher's likeliest tokens are kept: at least one of the vocabulary is among the others."""
        return min(self.objective.top_k, self.checkpoint.vocabulary - 1)

    @property
    def _asked(self) -> list[float]:
        return [self.top, self.objective.temperature]

    @cached_property
    def _teacher_width(self) -> int:
        """The hidden states' width, which a hidden term needs to be the same in both.

        Raises:
            CheckpointError: it is not.
        """
        assert self.teacher  # noqa: S101  the caller has looked
        ours, theirs = _width(self.checkpoint), _width(self.teacher)
        if ours != theirs:
            raise CheckpointError(
                self.teacher.directory,
                expected=f"hidden states of {ours} numbers, as the model that heals has",
                found=f"{theirs}",
                fix=f"leave {parameter('hidden_weight')} out",
            )
        return theirs

    @torch.no_grad()
    def fill(self, frozen: Frozen) -> Frozen:
        """Compute what is not on disk yet: states and teacher from one walk where the one is a cut of the other.

        Raises:
            OutputError: the disk has no room for it; nothing is computed.
            ArchitectureError: layers hand on more than hidden states.
        """
        check_room(frozen.kept)
        with ExitStack() as files:
            puts = {each.path: files.enter_context(keeping(each)) for each in frozen.kept if not each.kept}
            walks = list(self._walks(frozen, puts))
            for walk in walks:
                walk.go()
        return frozen

    def _walks(self, frozen: Frozen, puts: Mapping[Any, Put]) -> Iterator[_Walk]:
        states, teacher, hidden = (
            puts.get(each.path) if each else None for each in (frozen.states, frozen.teacher, frozen.teacher_hidden)
        )
        teaches = bool(teacher or hidden)
        route = self._shared_route(frozen.first) if states and teaches else None
        if states and route is None:
            yield _Walk(self, frozen, self.checkpoint, until=frozen.first, put_states=states)
        if self.teacher and teaches:
            kept = [layer for layer in range(self.teacher.anatomy.layers) if layer not in (route or ())]
            at = [*kept, self.teacher.anatomy.layers][frozen.first]
            alone = _Walk(self, frozen, self.teacher, put_teacher=teacher, put_hidden=hidden)
            yield alone if route is None else replace(alone, route=route, at=at, put_states=states)

    def _shared_route(self, first: int) -> Route | None:
        """The layers to skip in the teacher to get what enters layer `first`; None where its weights before it differ."""
        ours, theirs = self.checkpoint, self.teacher
        if not (theirs and ours.record):
            return None
        try:
            route = skipped_layers(ours, theirs)
        except CheckpointError:  # not a cut of this teacher
            return None
        kept = [layer for layer in range(theirs.anatomy.layers) if layer not in route]
        for name, tensor in ours.tensors.items():
            layer = ours.layer_of(name)
            if layer is not None and layer >= first:
                continue
            place = name if layer is None else ours.moved(name, kept[layer])
            there = theirs.tensors.get(place.replace(ours.layers_path, theirs.layers_path, 1))
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                return None
            if not torch.equal(*(read_weight(each).view(torch.uint8) for each in (tensor, there))):
                return None
        return route


@dataclass(frozen=True)
class _Walk:
    """All samples through a model, layer by layer, and what is put down on the way.

    route, at: what enters layer `at` when these layers are skipped is put as states. until: where the walk ends.
    """

    freezer: Freezer
    frozen: Frozen
    checkpoint: Checkpoint
    route: Route = UNPRUNED
    at: int | None = None
    until: int | None = None
    put_states: Put | None = None
    put_teacher: Put | None = None
    put_hidden: Put | None = None

    def go(self) -> None:
        dtype = str(self.freezer.dtype).removeprefix("torch.")
        decoder = Decoder.open(self.checkpoint, Compute(dtype=dtype, device=self.freezer.device))
        decoder.check_bare(f"train all layers: {parameter('last', self.freezer.checkpoint.anatomy.layers)}")
        layers = len(decoder.layers) if self.until is None else self.until
        routes = list(dict.fromkeys([UNPRUNED, self.route]))
        groups = by_length(self.frozen.lengths)
        batches = [(numbers, self._ids(numbers, decoder)) for numbers in groups]
        turns = decoder.turns(batches, tokens=max(ids.numel() for _, ids in batches), streams=len(routes))
        for number, turn in enumerate(turns):
            fronts = [decoder.enter(ids, routes) for _, ids in turn]
            for layer in decoder.through(fronts, range(layers)):
                self._put_states(layer + 1, turn, [front.arrived[self.route] for front in fronts])
                done, total = number * layers + layer + 1, len(turns) * layers
                self.freezer.progress(self._stage, done, total, note=f"{self.frozen.size / 1e6:,.0f} MB to disk")
            if self.put_teacher or self.put_hidden:
                for (numbers, ids), front in zip(turn, fronts, strict=True):
                    self._put_teacher(decoder, numbers, ids, front.arrived[UNPRUNED])

    @property
    def _stage(self) -> str:
        return "asking the teacher" if self.put_teacher or self.put_hidden else "walking the frozen layers"

    def _ids(self, numbers: Sequence[int], decoder: Decoder) -> Tensor:
        return padded([self.frozen.examples[number] for number in numbers])["input_ids"].to(decoder.device)

    def _put_states(self, at: int, turn: Sequence[Any], hidden: Sequence[Tensor]) -> None:
        if self.put_states and at == (self.frozen.first if self.at is None else self.at):
            for (numbers, _), states in zip(turn, hidden, strict=True):
                for number, row in zip(numbers, states, strict=True):
                    self.put_states(number, row[: self.frozen.lengths[number]])

    def _put_teacher(self, decoder: Decoder, numbers: Sequence[int], ids: Tensor, hidden: Tensor) -> None:
        learnt = [torch.tensor(counted(self.frozen.examples[number])[1:]) for number in numbers]
        states = [row[: len(some)][some.to(row.device)] for row, some in zip(hidden, learnt, strict=True)]
        counts = [len(some) for some in states]
        taught = told(decoder, torch.cat(states), self.freezer.top, self.freezer.objective.temperature)
        for number, rows, some in zip(numbers, _packed(*taught).split(counts), states, strict=True):
            if self.put_teacher:
                self.put_teacher(number, rows)
            if self.put_hidden:
                self.put_hidden(number, some)


@dataclass(frozen=True)
class Live:
    """A Frozen that computes what it knows anew for every batch: nothing on disk, all weights in memory."""

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
            tokens, log_p = told(self.teacher, states, self.freezer.top, objective.temperature)
            batch |= {"teacher_tokens": tokens, "teacher_log_p": log_p}
            batch |= {"teacher_hidden": states} if objective.hidden_weight else {}
        return batch


def told(decoder: Decoder, states: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The likeliest next tokens and their log probabilities, [tokens, top], given states [tokens, width]."""
    parts = [
        likeliest(decoder.token_logits(some), top, temperature) for some in states.split(decoder.chunk_rows(states))
    ]
    tokens, log_p = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(log_p)


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"weights": checkpoint.weights_sha256, "config": checkpoint.config}


def _width(checkpoint: Checkpoint) -> int:
    return int(checkpoint.blueprint.get_submodule(checkpoint.anatomy.embedding).weight.shape[1])


def _check_vocabulary(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    ours, theirs = checkpoint.vocabulary, teacher.vocabulary
    if ours != theirs:
        raise CheckpointError(
            teacher.directory,
            expected=f"a teacher with the vocabulary of the model that heals, {ours} tokens",
            found=f"{theirs}",
            fix="name the model it was cut from",
        )
