"""Losses and divergences from hidden states, in chunks of tokens: all logits of a batch never exist at once.

Each token that counts passes norm and head as a sequence of its own, so prompts and padding cost no logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shortstack.walk import Decoder


@torch.no_grad()
def next_token_losses(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    """Next-token cross-entropy in nats of each predicted token, fp32: [batch, length - 1].

    ids: [batch, length]; hidden: [batch, length, width] as it leaves the last layer.
    """
    states, targets = predicting(ids, hidden)
    parts = [token_losses(decoder, some, wanted) for some, wanted in chunks(decoder, states, targets)]
    return torch.cat(parts).view(ids.shape[0], -1)


@torch.no_grad()
def divergences(
    decoder: Decoder, ids: Tensor, whole: Tensor, others: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For chunk after chunk of predicted tokens: losses and KL(whole || other) in nats, each [others, tokens], fp32.

    whole, others: hidden states [batch, length, width] as they leave the last layer of the model and of its shorter forms.
    """
    states, targets = predicting(ids, whole)
    shorter = [predicting(ids, hidden)[0] for hidden in others]
    rows = decoder.chunk_rows(states)
    for start in range(0, len(targets), rows):
        here = slice(start, start + rows)
        wanted = targets[here, None]
        expected = decoder.token_logits(states[here]).float().log_softmax(-1)
        probabilities = expected.exp()
        found = [_against(decoder, other[here], wanted, expected, probabilities) for other in shorter]
        yield torch.stack([loss for loss, _ in found]), torch.stack([kl for _, kl in found])


def _against(
    decoder: Decoder, states: Tensor, targets: Tensor, expected: Tensor, probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    found = decoder.token_logits(states).float().log_softmax(-1)
    loss = -found.gather(-1, targets)[:, 0]
    return loss, (expected - found).mul_(probabilities).sum(-1)


def predicting(ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The states that predict a token, [tokens, width], and the tokens they predict."""
    return hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()


def token_losses(decoder: Decoder, states: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target [tokens] given the state [tokens, width] that predicts it, in fp32."""
    return nn.functional.cross_entropy(decoder.token_logits(states).float(), targets, reduction="none")


def chunks(decoder: Decoder, states: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """States and targets, as many tokens at a time as chunk_rows allows."""
    rows = decoder.chunk_rows(states)
    return zip(states.split(rows), targets.split(rows), strict=True)


def chunked_loss(decoder: Decoder, states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of targets [tokens] given states [tokens, width], without ever holding all logits.

    Each chunk's gradient is taken as soon as its loss is known, in the forward pass (as fused kernels do), so nothing is
    computed twice; the backward pass only scales it.
    """
    weights = [
        parameter
        for name in (decoder.anatomy.norm, decoder.anatomy.head)
        if name
        for parameter in decoder.model.get_submodule(name).parameters()
    ]
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        decoder, targets, states, *(weight for weight in weights if weight.requires_grad)
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoder: Decoder, targets: Tensor, states: Tensor, *weights: Tensor) -> Tensor:
        total, parts = states.new_zeros((), dtype=torch.float32), []
        sums = [torch.zeros_like(weight) for weight in weights]
        for some, wanted in chunks(decoder, states.detach(), targets):
            with torch.enable_grad():
                some = some.requires_grad_(True)
                loss = token_losses(decoder, some, wanted).sum()
            part, *found = torch.autograd.grad(loss, (some, *weights))
            parts.append(part)
            for accumulated, gradient in zip(sums, found, strict=True):
                accumulated += gradient
            total += loss.detach()
        ctx.save_for_backward(torch.cat(parts), *sums)
        ctx.count = len(targets)
        mean: Tensor = total / ctx.count
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scale = gradients[0] / ctx.count
        return (None, None, *(tensor * scale for tensor in ctx.saved_tensors))
