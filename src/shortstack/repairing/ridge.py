"""Weighted ridge regression from sums over tokens, in float64: of a matrix, of a number for each channel, or of one for all.

What is fitted is a change D whose product with the inputs, x, brings residuals r down: x D^T, x * d or c x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from shortstack.machine.numbers import in_float64


class Regression(ABC):
    """Sums over tokens for regressing residuals [tokens, width] on inputs [tokens, d], each token with a weight."""

    def __init__(self) -> None:
        self.inputs = self.both = self.residuals = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: Tensor, residuals: Tensor, weights: Tensor) -> None:
        """inputs: [..., d], residuals: [..., width], weights: [tokens]."""
        x, r = inputs.flatten(0, -2).float(), residuals.flatten(0, -2)
        scaled = x * weights[:, None]
        self.inputs = self.inputs + in_float64(self._summed(scaled, x))
        self.both = self.both + in_float64(self._summed(r, scaled))
        self.residuals = self.residuals + in_float64((r.square().sum(-1) * weights).sum())

    @abstractmethod
    def solve(self, ridge: float) -> Tensor:
        """The change that minimises sum w |r - its product with x|^2 + ridge mean(w x^2) |change|^2."""

    def error(self, change: Tensor) -> float:
        """sum w |r - its product with x|^2 over sum w |r|^2."""
        if not self.residuals:
            return 1.0
        explained = 2 * (change * self.both).sum() - self._square(change)
        return float(1 - explained / self.residuals)

    @abstractmethod
    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum over tokens of a times b, as the change is laid out."""

    @abstractmethod
    def _square(self, change: Tensor) -> Tensor:
        """sum w |its product with x|^2."""


class MatrixRegression(Regression):
    """The change is a matrix [width, d]."""

    def solve(self, ridge: float) -> Tensor:
        size = len(self.inputs)
        penalty = ridge * self.inputs.trace() / size * torch.eye(size, dtype=torch.float64, device=self.inputs.device)
        return torch.cholesky_solve(self.both.T, torch.linalg.cholesky(self.inputs + penalty)).T

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return a.T @ b

    def _square(self, change: Tensor) -> Tensor:
        return (change @ self.inputs * change).sum()


class ChannelRegression(Regression):
    """The change is one number for each channel, [width]; inputs are as wide as residuals."""

    def solve(self, ridge: float) -> Tensor:
        return self.both / (self.inputs + ridge * self.inputs.mean())

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(0)

    def _square(self, change: Tensor) -> Tensor:
        return (change.square() * self.inputs).sum()


class ScaleRegression(ChannelRegression):
    """The change is one number for all channels, []."""

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum()
