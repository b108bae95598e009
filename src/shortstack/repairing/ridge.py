"""Weighted ridge regression from sums over tokens, in float64: of a matrix, of a number for each channel, or of one for all.

What is fitted is a change D whose product with the inputs, x, brings residuals r down: x D^T, x * d or c x. Several
residuals of the same inputs are fitted together, each by a change of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from shortstack.machine.numbers import in_float64


class Regression(ABC):
    """Sums over tokens for regressing residuals [tokens, width] on inputs [tokens, d], each token with a weight."""

    def __init__(self) -> None:
        self.inputs = self.both = self.residuals = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: Tensor, residuals: Sequence[Tensor], weights: Tensor) -> None:
        """inputs: [..., d], each of residuals: [..., width], weights: [tokens]."""
        x, several = inputs.flatten(0, -2).float(), [r.flatten(0, -2) for r in residuals]
        scaled = x * weights[:, None]
        self.inputs = self.inputs + in_float64(self._summed(scaled, x))
        self.both = self.both + in_float64(torch.stack([self._summed(r, scaled) for r in several]))
        self.residuals = self.residuals + in_float64(
            torch.stack([(r.square().sum(-1) * weights).sum() for r in several])
        )

    @abstractmethod
    def solve(self, ridge: float) -> Tensor:
        """What minimises sum w |r - its product with x|^2 + ridge mean(w x^2) |change|^2, for each of the residuals.

        The changes' first dimension counts the residuals.
        """

    def errors(self, changes: Tensor) -> list[float]:
        """sum w |r - its product with x|^2 over sum w |r|^2, of each of the residuals; 1 where there are none to explain."""
        explained = 2 * (changes * self.both).reshape(len(changes), -1).sum(1) - self._squares(changes)
        return torch.where(self.residuals == 0, 1.0, 1 - explained / self.residuals).tolist()

    @abstractmethod
    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum over tokens of a times b, as a change is laid out."""

    @abstractmethod
    def _squares(self, changes: Tensor) -> Tensor:
        """sum w |its product with x|^2 of each change."""


class MatrixRegression(Regression):
    """A change is a matrix [width, d]."""

    def solve(self, ridge: float) -> Tensor:
        size = len(self.inputs)
        penalty = ridge * self.inputs.trace() / size * torch.eye(size, dtype=torch.float64, device=self.inputs.device)
        factor = torch.linalg.cholesky(self.inputs + penalty)
        return torch.cholesky_solve(self.both.flatten(0, 1).T, factor).T.view(self.both.shape)

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return a.T @ b

    def _squares(self, changes: Tensor) -> Tensor:
        return (changes @ self.inputs * changes).sum((1, 2))


class ChannelRegression(Regression):
    """A change is one number for each channel, [width]; inputs are as wide as residuals."""

    def solve(self, ridge: float) -> Tensor:
        return self.both / (self.inputs + ridge * self.inputs.mean())

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(0)

    def _squares(self, changes: Tensor) -> Tensor:
        return (changes.square() * self.inputs).reshape(len(changes), -1).sum(1)


class ScaleRegression(ChannelRegression):
    """A change is one number for all channels, []."""

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum()
