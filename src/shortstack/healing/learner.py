"""Samples in batches of alike length, so that little is padding, and the part of a model that trains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.weights import exact_weights
from shortstack.data import Example
from shortstack.decoder import Decoder, batching
from shortstack.decoder.losses import (
    Criterion,
    CrossEntropy,
    Distillation,
    DistillationAndText,
    chunked_loss,
    greedy_tokens,
    predicting,
)

Batch = Mapping[str, Tensor]
IGNORED = -100  # the label that counts in no loss
GROUPED = 50  # batches whose samples are sorted by length together, at most a quarter of an epoch


@dataclass(frozen=True)
class Data:
    """Samples to train on and held out, of any kind; lengths of the former in tokens.

    collate(samples) gives the module's arguments, among them `labels` [batch, length] with IGNORED where a token does not
    count in the loss.
    """

    training: Sequence[Any]
    held_out: Sequence[Any]
    lengths: Sequence[int]
    collate: Callable[[list[Any]], Batch]


class Ordered(Dataset[Any]):
    """Samples in the order of an epoch: seeded, those of alike length in one batch, so that little is padding."""

    def __init__(self, samples: Sequence[Any], lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.samples, self.lengths = samples, lengths
        self.batch_size, self.seed = batch_size, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order = grouped(self.lengths, self.batch_size, seed=self.seed * 1_000_003 + epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[self.order[index]]


def grouped(lengths: Sequence[int], batch: int, *, seed: int) -> list[int]:
    """Order all samples, by number: batches in random order, each of samples of alike length; a short one is last."""
    rng = random.Random(seed)
    shuffled = rng.sample(range(len(lengths)), len(lengths))
    size = batch * max(1, min(GROUPED, len(shuffled) // (4 * batch)))
    pools = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    order = [sample for pool in pools for sample in sorted(pool, key=lambda sample: lengths[sample])]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    last = [batches.pop()] if len(batches[-1]) < batch else []  # the short one stays last, or all others would shift
    return [sample for group in rng.sample(batches, len(batches)) + last for sample in group]


def padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Make input_ids and labels, [batch, longest], right-padded; causal attention needs no mask.

    The filler is the sample's own first token, which no library takes for padding.
    """
    labels = [
        [token if learn else IGNORED for token, learn in zip(example.ids, counted(example), strict=True)]
        for example in examples
    ]
    ids = [example.ids for example in examples]
    return {"input_ids": batching.padded(ids, filler=None), "labels": batching.padded(labels, filler=IGNORED)}


def counted(example: Example) -> tuple[bool, ...]:
    """Return which tokens count in the loss; the first never does."""
    return (False, *example.learn[1:])


class Learner(nn.Module):
    """A decoder from its first layer that is not frozen; returns the loss of a batch.

    Only the trained modules are part of this one, in float32.
    """

    def __init__(
        self,
        decoder: Decoder,
        first: int,
        trained: Mapping[str, nn.Module],
        *,
        temperature: float = 1.0,
        next_token_weight: float = 0.0,
    ) -> None:
        """Make modules trainable, by their names in the model; hidden states enter the layer `first`."""
        super().__init__()
        decoder.model.requires_grad_(False)
        self.names, self.trained = list(trained), nn.ModuleList(trained.values())
        self.trained.float().requires_grad_(True)
        self.first = first
        self.temperature, self.next_token_weight = temperature, next_token_weight
        self._decoder = (decoder,)  # in a tuple: the rest of the model is not this module's to train or move

    @property
    def decoder(self) -> Decoder:
        return self._decoder[0]

    @torch.no_grad()
    def take_stored(self, checkpoint: Checkpoint) -> None:
        """Start from the stored weights: a decoder that computes in bf16 has rounded them."""
        names = checkpoint.blueprint.state_dict()
        trained = {name: weight for name, weight in self.named_weights() if name in names}  # adapters are not stored
        for name, weight in exact_weights(checkpoint, trained):
            trained[name].copy_(weight)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the trained parameters, by their names in the whole model's state dict."""
        for name, module in zip(self.names, self.trained, strict=True):
            for rest, parameter in module.named_parameters():
                yield f"{name}.{rest}", parameter

    def train(self, mode: bool = True) -> Learner:
        """Switch dropout of all layers that run at every step."""
        super().train(mode)
        for layer in self.decoder.layers[self.first :]:
            layer.train(mode)
        return self

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        hidden: Tensor | None = None,
        teacher_tokens: Tensor | None = None,
        teacher_log_p: Tensor | None = None,
        made: Tensor | None = None,
        num_items_in_batch: Tensor | int = 1,
    ) -> dict[str, Tensor]:
        """Return the loss of a batch; in evaluation also the count of tokens with the teacher's top-1 token.

        hidden: what enters the first layer, [batch, length, width]. The teacher's are [tokens, top_k], of tokens that count.
        made: [batch], samples without next-token loss.
        """
        decoder, wanted = self.decoder, labels != IGNORED
        if hidden is not None and not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.float()
        left = decoder.finish(input_ids, None if hidden is None else (self.first, hidden))
        states, targets = predicting(input_ids, left, wanted)
        criterion: Criterion = CrossEntropy(targets)
        if teacher_tokens is not None and teacher_log_p is not None:
            criterion = Distillation(teacher_tokens, teacher_log_p, self.temperature)
            if made is not None and self.training:  # the held-out loss is the KL alone
                text = labels.masked_fill(made[:, None], IGNORED)[:, 1:][wanted[:, 1:]]
                criterion = DistillationAndText(criterion, text, self.next_token_weight)
        loss = chunked_loss(decoder, states, criterion)
        outputs = {"loss": loss / num_items_in_batch}
        if teacher_tokens is not None and not self.training:
            outputs["top1"] = (greedy_tokens(decoder, states) == teacher_tokens[:, 0]).sum()
        return outputs

    @property
    def trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights by their names in the whole model's state dict."""
        return {name: _whole(parameter).cpu() for name, parameter in self.named_weights()}


def _whole(parameter: Tensor) -> Tensor:
    """Gather a sharded parameter; every process must call this."""
    weight: Any = parameter.detach()
    gathered: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return gathered
