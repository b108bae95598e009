"""Losses and divergences from hidden states, in chunks of tokens: all logits of a batch never exist at once.

Each token that counts passes norm and head as a sequence of its own, so prompts and padding cost no logits. The head takes
a chunk of tokens, in the model's dtype; softmax takes a piece of that, in fp32, small enough to stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from shortstack.decoder.decoder import Decoder
from shortstack.errors import ArchitectureError

PIECE_BYTES = (512 << 20, 4 << 20)  # fp32 logits of a piece, on an accelerator and on a CPU


@torch.no_grad()
def next_token_losses(decoder: Decoder, ids: Tensor, hidden: Tensor, counted: Tensor | None = None) -> Tensor:
    """Compute the next-token cross-entropy in nats of each predicted token that counts, fp32: [tokens], sample by sample.

    ids: [batch, length]; hidden: [batch, length, width] as it leaves the last layer; counted: as in predicting.
    """
    states, targets = predicting(ids, hidden, counted)
    parts = [
        -_chosen(log_softmax, wanted)
        for here in chunks(decoder, states)
        for log_softmax, wanted in pieces(decoder.token_logits(states[here]), targets[here])
    ]
    return torch.cat(parts)


@torch.no_grad()
def divergences(
    decoder: Decoder,
    ids: Tensor,
    whole: Tensor,
    others: Sequence[Tensor],
    counted: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, chunk by chunk of predicted tokens, losses and KL from the whole, in nats: [others, tokens] each, fp32.

    whole, others: hidden states [batch, length, width] as they leave the last layer of the model and of its shorter forms.
    counted: as in predicting.
    """
    states, targets = predicting(ids, whole, counted)
    shorter = [predicting(ids, hidden, counted)[0] for hidden in others]
    for here in chunks(decoder, states):
        whole_pieces = pieces(decoder.token_logits(states[here]), targets[here])
        expected = [(log_p, log_p.exp(), wanted) for log_p, wanted in whole_pieces]
        losses, kls = zip(*(_against(expected, decoder.token_logits(other[here])) for other in shorter), strict=True)
        yield torch.stack(losses), torch.stack(kls)


def _against(expected: Sequence[tuple[Tensor, Tensor, Tensor]], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute losses and KL(p || q), [tokens] each; expected: of each piece log p, p and the targets."""
    losses, kls = [], []
    for (log_q,), (log_p, p, wanted) in zip(pieces(logits), expected, strict=True):
        losses.append(-_chosen(log_q, wanted))
        kls.append((log_p - log_q).mul_(p).sum(-1))
    return torch.cat(losses), torch.cat(kls)


def check_states(hidden: Tensor, batch: int, length: int) -> None:
    """Refuse hidden states that are not [batch, length, ...]: Gemma 3n has several of each token, one batch of them after
    the other.

    Raises:
        ArchitectureError: they are of another form.
    """
    if hidden.shape[:2] != (batch, length):
        shape = f"hidden states of shape {tuple(hidden.shape)}, not one for each of {batch} x {length} tokens"
        raise ArchitectureError(f"the last layer returns {shape}: losses of this model are not computed")


def predicting(ids: Tensor, hidden: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the states that predict a token, [tokens, width], and the tokens they predict.

    counted: [batch, length], which tokens count when they are predicted; None: all.
    """
    check_states(hidden, *ids.shape)
    if counted is None:
        return hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    return hidden[:, :-1][counted[:, 1:]], ids[:, 1:][counted[:, 1:]]


def chunks(decoder: Decoder, states: Tensor) -> Iterator[slice]:
    """Yield slices of states [tokens, width], as many tokens at a time as chunk_rows allows."""
    rows = decoder.chunk_rows(states)
    for start in range(0, len(states), rows):
        yield slice(start, start + rows)


def pieces(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield, piece by piece, log softmax of logits [tokens, vocabulary] in fp32, and what else those tokens have."""
    for some, *beside in split_pieces(logits, *others):
        yield some.float().log_softmax(-1), *beside


def split_pieces(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split logits [tokens, vocabulary], and what else there is for those tokens, into PIECE_BYTES at a time."""
    rows = max(1, PIECE_BYTES[logits.device.type == "cpu"] // (4 * logits.shape[-1]))
    yield from zip(logits.split(rows), *(other.split(rows) for other in others), strict=True)


def _chosen(values: Tensor, targets: Tensor) -> Tensor:
    """Pick the value of each row [tokens, vocabulary] at its target: [tokens]."""
    return values.gather(-1, targets[:, None])[:, 0]


class Criterion(Protocol):
    """A loss of logits, token by token."""

    def part(self, rows: slice) -> Criterion:
        """Return the same loss of some of the tokens."""
        ...

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sum over tokens in nats, and its gradient in the logits [tokens, vocabulary] of fp32."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the next token; targets: [tokens]. Its gradient is softmax, less one at the target."""

    targets: Tensor

    def part(self, rows: slice) -> CrossEntropy:
        return CrossEntropy(self.targets[rows])

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_softmax = logits.log_softmax(-1)
        total = -_chosen(log_softmax, self.targets).sum()
        slopes = log_softmax.exp_()
        slopes[torch.arange(len(slopes), device=slopes.device), self.targets] -= 1
        return total, slopes


@dataclass(frozen=True)
class Distillation:
    """T^2 KL(p || q) at temperature T, of p only the likeliest tokens by themselves and all others as one (Hinton et al.,
    arXiv 1503.02531, section 2).

    tokens: [tokens, k] ids; log_p: [tokens, k], log softmax(teacher / T) of them. With q = softmax(z / T) and r the sum over
    the others, the gradient in z is T (q - p) for the k, and T q (1 - p_r / q_r) for each other token.
    """

    tokens: Tensor
    log_p: Tensor
    temperature: float

    def part(self, rows: slice) -> Distillation:
        return Distillation(self.tokens[rows], self.log_p[rows], self.temperature)

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_q, p = (logits / self.temperature).log_softmax(-1), self.log_p.exp()
        log_chosen = log_q.gather(-1, self.tokens)
        log_others = log_q.scatter(-1, self.tokens, -torch.inf).logsumexp(-1)
        others = (1 - p.sum(-1)).clamp_min(torch.finfo(torch.float32).tiny)
        total = (p * (self.log_p - log_chosen)).sum() + (others * (others.log() - log_others)).sum()
        slopes = log_q.exp_() * (1 - (others.log() - log_others).exp())[:, None]
        slopes.scatter_(-1, self.tokens, log_chosen.exp() - p)
        return total * self.temperature**2, slopes * self.temperature


@dataclass(frozen=True)
class DistillationAndText:
    """Distillation, and so many times the cross-entropy of the next token where text says one.

    targets: [tokens], below 0 where there is none.
    """

    distillation: Distillation
    targets: Tensor
    weight: float

    def part(self, rows: slice) -> DistillationAndText:
        return DistillationAndText(self.distillation.part(rows), self.targets[rows], self.weight)

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        total, slopes = self.distillation.of(logits)
        said = self.targets >= 0
        loss, more = CrossEntropy(self.targets[said]).of(logits[said])
        slopes[said] += self.weight * more
        return total + self.weight * loss, slopes


@torch.no_grad()
def greedy_tokens(decoder: Decoder, states: Tensor) -> Tensor:
    """Find the likeliest next token after each of the states [tokens, width]: [tokens]."""
    return torch.cat([decoder.token_logits(some).argmax(-1) for some in states.split(decoder.chunk_rows(states))])


def likeliest(logits: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Find the likeliest tokens given logits: ids and log probabilities at a temperature, [tokens, count]."""
    top = [((some.float() / temperature).log_softmax(-1)).topk(count, dim=-1) for (some,) in split_pieces(logits)]
    return torch.cat([piece.indices for piece in top]), torch.cat([piece.values for piece in top])


def chunked_loss(decoder: Decoder, states: Tensor, criterion: Criterion) -> Tensor:
    """Sum over tokens a criterion of their logits, given states [tokens, width]; all logits never exist at once.

    Each chunk's gradient is taken as soon as its loss is known, in the forward pass (as fused kernels do), so nothing is
    computed twice; the backward pass only scales it.
    """
    if not torch.is_grad_enabled():
        totals = [
            _slopes(decoder.token_logits(states[here]), criterion.part(here))[0] for here in chunks(decoder, states)
        ]
        return torch.stack(totals).sum()
    ends = [decoder.model.get_submodule(name) for name in (decoder.anatomy.norm, decoder.anatomy.head) if name]
    needed = {id(weight): weight for end in ends for weight in end.parameters() if weight.requires_grad}
    inside = {id(weight) for layer in decoder.layers for weight in layer.parameters()} | needed.keys()
    others = [weight for weight in decoder.model.parameters() if weight.requires_grad and id(weight) not in inside]
    weights = *needed.values(), *others
    loss: Tensor = _ChunkedLoss.apply(decoder, criterion, len(needed), states, *weights)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decoder: Decoder, criterion: Criterion, needed: int, states: Tensor, *weights: Tensor
    ) -> Tensor:
        """needed: so many of the weights, the first, are those of the norm and the head, which all have a gradient."""
        total, parts = states.new_zeros((), dtype=torch.float32), []
        sums: list[Tensor | None] = [None] * len(weights)  # of what lies before the layers it stays so
        for here in chunks(decoder, states):
            with torch.enable_grad():
                some = states.detach()[here].requires_grad_(True)
                logits = decoder.token_logits(some)
            loss, slopes = _slopes(logits.detach(), criterion.part(here))
            in_states, *in_weights = torch.autograd.grad(logits, (some, *weights), slopes, allow_unused=True)
            parts.append(in_states)
            assert all(gradient is not None for gradient in in_weights[:needed])  # noqa: S101  else they would not train
            sums = [
                added if so_far is None else so_far.add_(added) for so_far, added in zip(sums, in_weights, strict=True)
            ]
            total += loss
        ctx.save_for_backward(torch.cat(parts), *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (
            None,
            None,
            None,
            *(tensor if tensor is None else tensor * gradients[0] for tensor in ctx.saved_tensors),
        )


def _slopes(logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
    """Compute a criterion's sum, and its gradient in the logits, of the logits' dtype."""
    total, slopes = logits.new_zeros((), dtype=torch.float32), torch.empty_like(logits)
    start = 0
    for some, slope in split_pieces(logits, slopes):
        loss, gradient = criterion.part(slice(start, start + len(some))).of(some.float())
        total += loss
        slope.copy_(gradient)
        start += len(some)
    return total, slopes
