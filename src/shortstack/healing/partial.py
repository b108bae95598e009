"""Partial-layer healing: train the last k layers, the final norm and the head (Lu et al., 4.2); the rest is frozen.

What enters the first trained layer never changes, so it is walked once, kept on disk, and the tail alone is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shortstack.activations import Activations, content_key, stored
from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError
from shortstack.examples import Example
from shortstack.loading import stored_tensors
from shortstack.losses import chunked_loss
from shortstack.planning import parse_layers
from shortstack.progress import Progress, silent
from shortstack.shards import StoredTensor
from shortstack.training import Batch, History, Schedule, train
from shortstack.walk import UNPRUNED, Decoder, fast_bfloat16

IGNORED = -100  # the label torch's cross-entropy leaves out
PREFIX_BATCH = 16


@dataclass(frozen=True)
class Trained:
    """The tensors that changed, under their stored names and in their stored dtype, and the config fields that did."""

    tensors: Mapping[str, StoredTensor]
    parameters: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Partial:
    """Which part trains: some layers, the final norm, and the head.

    layers: these, as the pruned model numbers them, such as "10-13,21"; near_cut: so many on both sides of each cut; without
    either the last `last`. What is before the first of them is frozen and walked once. head: None trains it unless it is
    tied to the embedding; a tied head trains only when `untie_head` makes it a matrix of its own.
    """

    last: int = 3
    layers: str | None = None
    near_cut: int | None = None
    head: bool | None = None
    untie_head: bool = False
    name: ClassVar[str] = "partial"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def run(
        self,
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        schedule: Schedule,
        *,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> tuple[Trained, History]:
        """Walk the frozen prefix over all samples (or find it on disk), then train the tail.

        Raises:
            InputError: more layers than there are, or a tied head asked to train without untie_head.
        """
        self._check(checkpoint)
        bfloat16 = fast_bfloat16(device)
        decoder = Decoder.load(checkpoint, dtype=torch.bfloat16 if bfloat16 else torch.float32, device=device)
        trained = self.trained_layers(checkpoint)
        at = min(trained, default=checkpoint.anatomy.layers)
        everything = [*held_out, *examples]
        states = prefix_states(checkpoint, decoder, everything, at, progress=progress)
        tail = Tail(decoder, trained, train_head=self.trains_head(checkpoint), untie=self.untie_head)
        samples = [(example, states, index) for index, example in enumerate(everything)]
        history = train(
            tail,
            samples[len(held_out) :],
            samples[: len(held_out)],
            collate_samples,
            schedule,
            device=device,
            bfloat16=bfloat16,
            progress=progress,
        )
        config = _untied(checkpoint) if self.untie_head else {}
        return Trained(stored_tensors(checkpoint, tail.trained_tensors()), tail.trainable_parameters, config), history

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        """Bytes the healed checkpoint has more than the pruned one: an untied head is a second embedding."""
        if not self.untie_head:
            return 0
        embedding: Tensor = checkpoint.blueprint.get_submodule(checkpoint.anatomy.embedding).weight
        return round(embedding.numel() * checkpoint.weight_bytes / checkpoint.parameters)

    def trains_head(self, checkpoint: Checkpoint) -> bool:
        """Whether the head is among what trains."""
        return (not checkpoint.anatomy.tied or self.untie_head) if self.head is None else self.head

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """The layers that train, in order, as the pruned model numbers them."""
        layers = checkpoint.anatomy.layers
        if self.layers is not None:
            return self._named(layers)
        if self.near_cut is not None:
            return near_cuts(checkpoint, self.near_cut)
        return tuple(range(layers - self.last, layers))

    def _named(self, count: int) -> tuple[int, ...]:
        named = tuple(sorted(set(parse_layers(self.layers or ""))))
        if named[-1] >= count:
            raise InputError(
                "--layers",
                expected=f"layers 0 to {count - 1} of the pruned model",
                found=str(named[-1]),
                fix="name layers as the pruned model numbers them",
            )
        return named

    def _check(self, checkpoint: Checkpoint) -> None:
        layers = checkpoint.anatomy.layers
        given = [name for name in ("layers", "near_cut") if getattr(self, name) is not None]
        given += ["last"] if given and self.last != Partial.last else []
        if len(given) > 1:
            names = [f"--{name.replace('_', '-')}" for name in given]
            raise InputError(
                names[0], expected=f"{names[0]} alone", found=f"{names[1]} beside it", fix="give one of them"
            )
        if not 0 <= self.last <= layers:
            raise InputError(
                "--last",
                expected=f"between 0 and the model's {layers} layers",
                found=str(self.last),
                fix="train fewer layers",
            )
        if self.untie_head and not checkpoint.anatomy.tied:
            raise InputError(
                "--untie-head",
                expected="a head tied to the embedding",
                found="a head of its own",
                fix="leave the option out",
            )
        if self.head and checkpoint.anatomy.tied and not self.untie_head:
            raise InputError(
                "--head",
                expected="a head of its own to train",
                found="one tied to the embedding",
                fix="add --untie-head, or leave the head frozen",
            )


def near_cuts(checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    """The `count` layers on either side of each place where layers were removed, by the checkpoint's record.

    Raises:
        InputError: the record tells of no cut.
    """
    kept, original = list((checkpoint.record.get("layer_map") or {}).values()), _original_layers(checkpoint.record)
    edges = [-1, *kept, original]
    cuts = [place for place, (one, next_one) in enumerate(pairwise(edges)) if next_one != one + 1] if kept else []
    if not cuts:
        raise InputError(
            "--near-cut",
            expected="a checkpoint that layers were removed from",
            found=f"{checkpoint.source}, whose record tells of none",
            fix="name layers by --layers or --last",
        )
    near = {layer for cut in cuts for layer in range(cut - count, cut + count)}
    return tuple(sorted(near & set(range(len(kept)))))


def _original_layers(record: Mapping[str, Any]) -> int:
    """How many layers the first model of the line had."""
    plans = []
    while record:
        plans.append(record.get("plan"))
        record = record.get("origin") or {}
    return next((int(plan["layers"]) for plan in reversed(plans) if plan), 0)


@torch.no_grad()
def prefix_states(
    checkpoint: Checkpoint, decoder: Decoder, examples: Sequence[Example], at: int, *, progress: Progress = silent
) -> Activations:
    """What enters layer `at` for every example, from one walk of the layers before it; kept under its content's hash."""
    dtype = str(next(decoder.model.parameters()).dtype).removeprefix("torch.")
    key = content_key(
        weights=checkpoint.weights_sha256,
        config=checkpoint.config,
        at=at,
        dtype=dtype,
        ids=[example.ids for example in examples],
    )
    width = decoder.model.get_submodule(checkpoint.anatomy.embedding).weight.shape[1]

    def batches() -> Iterator[Sequence[Tensor]]:
        for start in range(0, len(examples), PREFIX_BATCH):
            some = examples[start : start + PREFIX_BATCH]
            batch = padded(some)
            inputs = {name: batch[name].to(decoder.device) for name in ("input_ids", "attention_mask")}
            states = decoder.walk(inputs["input_ids"], until=at, attention_mask=inputs["attention_mask"])[UNPRUNED]
            yield [row[: len(example.ids)] for row, example in zip(states, some, strict=True)]
            progress("walking the frozen layers", min(start + PREFIX_BATCH, len(examples)), len(examples))

    return stored(key, [len(example.ids) for example in examples], width, dtype, batches())


def padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Right-padded input_ids, attention_mask and labels, [batch, longest]."""
    longest = max(len(example.ids) for example in examples)

    def fill(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *(value,) * (longest - len(row))] for row in rows])

    labels = [
        [token if learn else IGNORED for token, learn in zip(example.ids, example.learn, strict=True)]
        for example in examples
    ]
    return {
        "input_ids": fill([example.ids for example in examples], 0),
        "attention_mask": fill([(1,) * len(example.ids) for example in examples], 0),
        "labels": fill(labels, IGNORED),
    }


def collate_samples(samples: Sequence[tuple[Example, Activations, int]]) -> Batch:
    """padded() with the hidden states that enter the tail, [batch, longest, width]."""
    batch = padded([example for example, _, _ in samples])
    hidden = nn.utils.rnn.pad_sequence([states[index] for _, states, index in samples], batch_first=True)
    return {**batch, "hidden": hidden}


class Tail(nn.Module):
    """The end of a decoder, entered with given hidden states at the first layer that trains; returns the next-token loss.

    Trained weights are kept in float32. Only they are parameters of this module; the frozen layers' weights are freed.
    """

    def __init__(self, decoder: Decoder, layers: Sequence[int], *, train_head: bool, untie: bool = False) -> None:
        """layers: those that train."""
        super().__init__()
        at = min(layers, default=decoder.anatomy.layers)
        if at:
            decoder.check_bare(f"train all layers: --last {decoder.anatomy.layers}")
        model, anatomy = decoder.model.requires_grad_(False), decoder.anatomy
        head = model.get_submodule(anatomy.head)
        if untie:
            head.weight = nn.Parameter(head.weight.detach().clone())
        names = [anatomy.layer(index) for index in layers]
        names += [anatomy.norm] if anatomy.norm else []
        names += [anatomy.head] if train_head else []
        self.names = names
        self.trained = nn.ModuleList(model.get_submodule(name) for name in names)
        self.trained.float().requires_grad_(True)
        for layer in decoder.layers[:at]:
            layer.to_empty(device="meta")
        self._at = at
        self._decoder = (decoder,)  # in a tuple: the rest of the model is not this module's to train or move

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        decoder = self._decoder[0]
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.float()
        states = decoder.walk(input_ids, start=(self._at, hidden), attention_mask=attention_mask)[UNPRUNED]
        counted = labels[:, 1:] != IGNORED
        loss = chunked_loss(decoder, states[:, :-1][counted], labels[:, 1:][counted])
        return {"loss": loss}

    @property
    def trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_tensors(self) -> dict[str, Tensor]:
        """Trained weights by their name in the whole model's state dict."""
        return {
            f"{name}.{rest}": parameter.detach().cpu()
            for name, module in zip(self.names, self.trained, strict=True)
            for rest, parameter in module.named_parameters()
        }


def _untied(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that give the head a matrix of its own, in a multimodal config at both levels."""
    key, untied = checkpoint.anatomy.text_key, {"tie_word_embeddings": False}
    return {**untied, key: {**checkpoint.config[key], **untied}} if key else untied
