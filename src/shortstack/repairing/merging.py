"""Neurons of removed layers in the place of weaker ones: the MLP before a cut keeps the strongest of its own and theirs.

After CoMe (arXiv 2510.15304), which concatenates the most sensitive channels of neighbouring feed-forward blocks. The MLP
has as many neurons as before; what all of them give together is refitted like any matrix before a cut (fit.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shortstack.architecture.selfcheck import LAYER_NUMBER, plain_attributes
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.weights import Edit, exact_weights
from shortstack.decoder import Decoder
from shortstack.decoder.layer_io import State, recorded_inputs, recorded_outputs
from shortstack.decoder.mlps import Mlp, mlps_of
from shortstack.machine.numbers import in_float64
from shortstack.repairing.fold_points import FoldPoint, Matrix

Weights = dict[str, Tensor]  # by the parameters' names in a layer, neurons along the first dimension


@dataclass(frozen=True)
class MergeableMlp:
    """An MLP whose last matrix is added to the layer's output. norm: the module whose output enters it, "" for none."""

    mlp: Mlp
    norm: str

    def stands_in(self, layer: nn.Module) -> bool:
        """Return whether a layer has this MLP, too; one of experts beside one of none has not."""
        names = {name for name, _ in layer.named_parameters()}
        return {f"{name}.weight" for name in (*self.mlp.entering, self.mlp.leaving, self.norm) if name} <= names

    def beside(self, layer: nn.Module) -> dict[str, object]:
        """Return what a layer's MLP has beside its matrices, by which its neurons may give something else in another layer.

        An activation's parameters, its limits: numbers, texts and lists of them, but not the layer's own number.
        """
        module, matrices = layer.get_submodule(self.mlp.module), (*self.mlp.entering, self.mlp.leaving)
        neurons = len(self.columns(layer))  # as many as it has
        own = tuple(f"{name.removeprefix(f'{self.mlp.module}.')}." for name in matrices)
        tensors = dict((*module.named_parameters(), *module.named_buffers()))
        beside: dict[str, object] = {
            name: tensor.tolist() for name, tensor in tensors.items() if not name.startswith(own)
        }
        for name, part in module.named_modules():
            if not f"{name}.".startswith(own):
                plain = {key: value for key, value in plain_attributes(part) if not LAYER_NUMBER.search(key)}
                beside[f"{name}."] = type(part).__name__, {key: plain[key] for key in plain if plain[key] != neurons}
        return beside

    def weights(self, layer: nn.Module) -> Weights:
        """Return rows of gate and up, their biases, and columns of the last matrix, one for each neuron."""
        there = dict(layer.named_parameters())
        rows = [f"{name}.{kind}" for name in self.mlp.entering for kind in ("weight", "bias")]
        last = f"{self.mlp.leaving}.weight"
        return {name: there[name].data for name in rows if name in there} | {last: there[last].data.T}

    def columns(self, layer: nn.Module) -> Tensor:
        """Return the last matrix's columns alone, one row for each neuron."""
        return layer.get_parameter(f"{self.mlp.leaving}.weight").data.T

    def stored(self, checkpoint: Checkpoint, number: int) -> nn.Module:
        """Return a layer with this MLP and its norm as they are stored, in float32, and nothing else."""
        prefix, parts = f"{checkpoint.anatomy.layer(number)}.", (f"{self.mlp.module}.", f"{self.norm}.")
        layer: nn.Module = copy.deepcopy(checkpoint.blueprint.get_submodule(prefix[:-1]))
        names = [f"{prefix}{name}" for name, _ in layer.named_parameters() if name.startswith(parts)]
        weights = {name.removeprefix(prefix): weight for name, weight in exact_weights(checkpoint, names)}
        layer.load_state_dict(weights, strict=False, assign=True)
        return layer

    def gains(self, layer: nn.Module) -> Tensor:
        """Return the norm's factor for each channel, up to a factor common to all layers, [width]."""
        if not self.norm:
            return torch.ones(())
        norm = copy.deepcopy(layer.get_submodule(self.norm)).float()
        weight = norm.get_parameter("weight")
        first, second = torch.randn(2, *weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        return norm(first) - norm(second)  # type: ignore[no-any-return]  # what is added to all states alike falls out


@torch.no_grad()
def mergeable_mlp(decoder: Decoder, number: int, point: FoldPoint) -> MergeableMlp | None:
    """Find the MLP that a fold point at a layer's output ends, where it is a module of its own; None where there is none."""
    if not isinstance(point, Matrix):
        return None
    mlps = [mlp for mlp in mlps_of(decoder, number) if mlp.leaving == point.name and mlp.module]
    return MergeableMlp(mlps[0], _norm_before(decoder, number, mlps[0])) if mlps else None


def _norm_before(decoder: Decoder, number: int, mlp: Mlp) -> str:
    layer, ids = decoder.layers[number], torch.arange(4, device=decoder.device)[None]
    state = State(decoder.embed(ids), {})
    norms = [
        name
        for name, module in layer.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.shape == state.hidden.shape[-1:]
    ]
    with recorded_outputs(layer, norms) as left, recorded_inputs(layer, [mlp.entering[0]]) as entered:
        decoder.step(ids, number, [state])
    (entering,) = entered[mlp.entering[0]]
    entering = entering.flatten(0, -2)  # some models give their MLP all tokens in one row (ernie4_5_moe)
    return next((name for name, (output, *_) in left.items() if torch.equal(output.flatten(0, -2), entering)), "")


class MergedMlp:
    """The strongest neurons of the MLP before a cut and of those that the cut removes, as they are offered.

    A neuron of its own stays where it is; one that is taken has the place of one that goes.
    """

    def __init__(
        self, layer: nn.Module, mlp: MergeableMlp, entering: Sequence[Tensor], inputs: Sequence[Tensor], fitting: int
    ) -> None:
        """Take an MLP to merge into.

        entering: what enters the MLP, and inputs: what its neurons give, of each batch; from `fitting` on held out.
        """
        self.mlp, self.entering, self.fitting = mlp, entering, fitting
        self.own_inputs, self.inputs = inputs, [batch.clone() for batch in inputs]
        self.columns, self.own_columns = (mlp.columns(layer).clone() for _ in range(2))
        self.gains, self.beside = mlp.gains(layer), mlp.beside(layer)
        self.scores: Tensor | None = None
        self.numbers = torch.arange(inputs[0].shape[-1])  # in the layer of their origin
        self.origin = torch.full_like(self.numbers, -1)  # the removed layer; -1 of a neuron of its own

    @torch.no_grad()
    def offer(self, layer: nn.Module, number: int, token_weights: Sequence[Tensor]) -> None:
        """Take the neurons of a removed layer that are stronger than the weakest so far; none of one without the same MLP.

        A neuron is as strong as what it adds to the stream: the norm over tokens of what it gives, times that of its column.
        token_weights: of each batch, [tokens].
        """
        if not self.mlp.stands_in(layer) or self.mlp.beside(layer) != self.beside:
            return
        if self.scores is None:
            self.scores = self._scores(self.inputs, self.columns, token_weights)
        theirs, ratio = self.mlp.columns(layer), _ratio(self.mlp.gains(layer), self.gains)
        entering = [(hidden.float() * ratio).to(hidden.dtype) for hidden in self.entering]
        with recorded_inputs(layer, [self.mlp.mlp.leaving]) as recorded:
            for hidden in entering:
                layer.get_submodule(self.mlp.mlp.module)(hidden)
        inputs = recorded[self.mlp.mlp.leaving]
        scores = self._scores(inputs, theirs, token_weights)
        places, chosen = exchanged(self.scores, scores)
        self.scores[places], self.origin[places], self.numbers[places] = scores[chosen], number, chosen
        for mine, its in zip(self.inputs, inputs, strict=True):
            mine[..., places] = its[..., chosen]
        self.columns[places] = theirs[chosen]

    def _scores(self, inputs: Sequence[Tensor], columns: Tensor, token_weights: Sequence[Tensor]) -> Tensor:
        fitting = zip(inputs[: self.fitting], token_weights[: self.fitting], strict=True)
        squares = sum(in_float64((x.flatten(0, -2).float().square() * w[:, None]).sum(0)) for x, w in fitting)
        column = in_float64(columns.float().square().sum(1))
        return (torch.as_tensor(squares) * column).sqrt().cpu()

    @property
    def taken(self) -> Tensor:
        """Places of the neurons that were a removed layer's."""
        return torch.where(self.origin >= 0)[0]

    def applied(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Turn streams that leave the layer with its own MLP into those that leave it with the merged one."""
        places = self.taken
        new, old = self.columns[places].float(), self.own_columns[places].float()
        changes = (
            now[..., places].float() @ new - before[..., places].float() @ old
            for now, before in zip(self.inputs, self.own_inputs, strict=True)
        )
        return [
            (hidden.float() + change.view(hidden.shape)).to(hidden.dtype)
            for hidden, change in zip(streams, changes, strict=True)
        ]

    def edits(self, checkpoint: Checkpoint, number: int, change: Tensor | None) -> Iterator[tuple[str, Edit]]:
        """Yield the edits of the layer's parameters by merging, and by a change of the last matrix [width, neurons].

        From stored weights, in float32: what the walk computes in may have fewer bits than they.
        """
        layer, last = self.mlp.stored(checkpoint, number), f"{self.mlp.mlp.leaving}.weight"
        own, gains = self.mlp.weights(layer), self.mlp.gains(layer)
        merged = {name: weight.clone() for name, weight in own.items()}
        scaled = {f"{name}.weight" for name in self.mlp.mlp.entering}  # what is multiplied with the norm's output
        for removed in self.origin[self.taken].unique().tolist():
            theirs, places = self.mlp.stored(checkpoint, removed), torch.where(self.origin == removed)[0]
            ratio = _ratio(self.mlp.gains(theirs), gains)
            for name, weight in self.mlp.weights(theirs).items():
                rows = weight[self.numbers[places]]
                merged[name][places] = rows * ratio if name in scaled else rows
        if change is not None:
            merged[last] += change.cpu().T
        for name, weight in merged.items():
            added = weight - own[name]
            yield name, Edit(added=added.T if name == last else added)


def _ratio(theirs: Tensor, mine: Tensor) -> Tensor:
    """Divide the gains of two norms; 0 where mine is: what a norm has made 0 nothing brings back."""
    return torch.where(mine == 0, 0, theirs / mine)


def exchanged(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Choose which of mine go, and which of theirs come, so that the best of both are kept; mine stay where as good.

    >>> exchanged(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 5.0, 0.0]))
    (tensor([1]), tensor([1]))
    """
    best = torch.cat([mine, theirs]).argsort(descending=True, stable=True)[: len(mine)]
    stays = torch.zeros(len(mine), dtype=torch.bool)
    stays[best[best < len(mine)]] = True
    return torch.where(~stays)[0], best[best >= len(mine)] - len(mine)
