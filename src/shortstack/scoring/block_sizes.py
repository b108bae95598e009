"""Sizes of the blocks of layers that are scored, as they are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NoReturn

from shortstack.errors import InputError, parameter
from shortstack.scoring.metrics import METRICS, Metric

Sizes = int | str | Sequence[int] | None


def block_sizes(wanted: Sizes) -> tuple[int, ...]:
    """The sizes that are meant by a number, by numbers, or by text with numbers and ranges: each once, in order.

    >>> block_sizes("2-4,8"), block_sizes(3), block_sizes([2, 1, 2]), block_sizes(None)
    ((2, 3, 4, 8), (3,), (1, 2), ())
    """
    if wanted is None:
        return ()
    sizes: Sequence[Any] = (
        _read(wanted) if isinstance(wanted, str) else wanted if isinstance(wanted, Sequence) else [wanted]
    )
    if (
        isinstance(wanted, bytes)
        or not sizes
        or any(isinstance(size, bool) or not isinstance(size, Integral) or size < 1 for size in sizes)
    ):
        _refuse(wanted)
    return tuple(sorted({int(size) for size in sizes}))


def wanted_sizes(window: Sizes, layers: int, metrics: Sequence[Metric]) -> tuple[int, ...]:
    """The sizes of blocks that are asked for, where the model has them and a metric scores them."""
    sizes = block_sizes(window)
    alone = next((metric.name for metric in metrics if not metric.singles), None)
    if not sizes:
        if alone:
            raise InputError(
                parameter("window"),
                expected=f"the size of the blocks that {alone} scores",
                found="none",
                fix=f"add {parameter('window', 8)}, or as many layers as you would remove",
            )
    elif sizes[-1] >= layers:
        raise InputError(
            parameter("window"),
            expected=f"1 to {layers - 1} of the model's {layers} layers",
            found=str(sizes[-1]),
            fix="name the size of the block you would remove",
        )
    elif not any(metric.windows for metric in metrics):
        raise InputError(
            parameter("window"),
            expected=f"a metric that scores blocks: {', '.join(name for name in METRICS if METRICS[name].windows)}",
            found=", ".join(metric.name for metric in metrics),
            fix=f"add one of these, or leave {parameter('window')} out",
        )
    return sizes


def _is_size(number: object) -> bool:
    return not isinstance(number, bool) and isinstance(number, Integral) and int(number) > 0


def _read(text: str) -> list[int]:
    """The numbers of a text like 2-4,8; ranges are inclusive."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if not match:
            _refuse(text)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            _refuse(text)
        found += range(first, last + 1)
    return found


def _refuse(wanted: object) -> NoReturn:
    raise InputError(
        parameter("window"),
        expected="sizes of blocks, such as 8, 2-12 or 2,4,8",
        found=repr(wanted),
        fix=f"write {parameter('window', 8)}, or as many layers as you would remove",
    )
