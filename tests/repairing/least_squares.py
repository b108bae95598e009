"""Ridge regression as one would first write it: least squares, with a row of the penalty for each number of the change."""

import math

import torch

from shortstack.repairing.fit import RIDGES


def weighted(there, *states):
    """Return states [tokens, ...] times the root of each token's weight, 1 / |there|, in float64."""
    root = there.double().norm(dim=-1, keepdim=True) ** -0.5
    return [state.double() * root for state in states]


def left(x, r, change, kind):
    """Return what a change leaves of r: x D^T by a matrix, x * d by a diagonal, c x by a scalar. x, r: [tokens, width]."""
    return r - (x @ change.T if kind == "matrix" else x * change)


def solved(x, r, ridge, kind):
    """Return the change of that kind: [width, inputs], [width] or [1]."""
    columns, wanted = (
        {"matrix": [each], "diagonal": list(each.T[..., None]), "scalar": [each.flatten()[:, None]]}[kind]
        for each in (x, r)
    )
    count = sum(column.shape[1] for column in columns)
    penalty = math.sqrt(ridge * sum(column.square().sum() for column in columns) / count)
    found = []
    for inputs, residuals in zip(columns, wanted, strict=True):
        rows = torch.cat([inputs, penalty * torch.eye(inputs.shape[1], dtype=x.dtype)])
        ends = torch.cat([residuals, torch.zeros(inputs.shape[1], residuals.shape[1], dtype=x.dtype)])
        found.append(torch.linalg.lstsq(rows, ends).solution.T)
    return found[0] if kind == "matrix" else torch.cat(found).flatten()


@torch.no_grad()
def best(x, r, held_out, kind="matrix"):
    """Return the least held-out squared error, the change and the ridge of it, and the error without. held_out: [tokens]."""
    found = {}
    for ridge in RIDGES:
        change = solved(x[~held_out], r[~held_out], ridge, kind)
        found[float(left(x, r, change, kind)[held_out].square().sum())] = change, ridge
    error = min(found)
    return error, *found[error], float(r[held_out].square().sum())
