"""Sizes, numbers and times as people read them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any


def size(nbytes: float) -> str:
    """Bytes for people.

    >>> size(212_388_480)
    '212.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def number(value: float) -> str:
    """A perplexity for people: four digits, and words where digits stop meaning anything.

    >>> [number(value) for value in (11.2543, 1234.5, 7_912_345.0, 0.02113)]
    ['11.25', '1,234', '7.91e+06', '0.02113']
    """
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A time for people, in its two largest units.

    >>> [duration(value) for value in (0.42, 75, 7_260, 200_000, None)]
    ['0.4 s', '1 min 15 s', '2 h 1 min', '2 d 8 h', 'unknown']
    """
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for large, small, one, other in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if seconds >= large:
            whole, rest = divmod(round(seconds / small), large // small)
            return f"{whole} {one} {rest} {other}"
    return f"{seconds:.0f} s"


UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(text: str) -> int | None:
    """The bytes of a size like 5GB; None where it is none.

    >>> bytes_of("5GB"), bytes_of("1MiB"), bytes_of("lots")
    (5000000000, 1048576, None)
    """
    found = re.fullmatch(r"(\d+)([KMGT]I?B)", text.strip(), re.IGNORECASE)
    return int(found[1]) * UNITS[found[2].upper()] if found else None


def count_of(text: str) -> int | None:
    """The count that is meant by 64, 1k or 2.5M; None where it is none.

    >>> count_of("64"), count_of("1k"), count_of("2.5M"), count_of("1.5"), count_of("all")
    (64, 1000, 2500000, None, None)
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM]?)", text.strip())
    if not found:
        return None
    count = Fraction(found[1]) * {"": 1, "k": 10**3, "m": 10**6}[found[2].lower()]
    return int(count) if count.denominator == 1 else None


def share_of(text: str) -> float | None:
    """The share that is meant by 10% or 0.1; None where it is none, or not above 0 and at most 1.

    >>> share_of("10%"), share_of("0.1"), share_of("100%"), share_of("1.0"), share_of("0%"), share_of("1")
    (0.1, 0.1, 1.0, 1.0, None, None)
    """
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,30})?)(%?)", text.strip())
    if not found or not {".", "%"} & {*text}:
        return None
    share = Fraction(found[1]) / (100 if found[2] else 1)
    return float(share) if 0 < share <= 1 else None


def show_share(share: float) -> str:
    """A share as share_of() reads it.

    >>> [show_share(share) for share in (0.1, 1.0, 1e-05, 1 / 3)]
    ['10%', '100%', '0.001%', '33.33333333333333%']
    """
    return f"{(Decimal(repr(float(share))) * 100).normalize():f}%"


def amount_of(text: str) -> float | None:
    """The share or the count that is meant; None where it is neither.

    >>> amount_of("10%"), amount_of("1.0"), amount_of("1"), amount_of("1.5k"), amount_of("some")
    (0.1, 1.0, 1, 1500, None)
    """
    share = share_of(text)
    return count_of(text) if share is None else share


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Options as the command line spells them; one without a value is left out, and lists have commas.

    >>> option_words({"batch_size": [1, 8], "block": True, "head": False, "step": None})
    ['--batch-size', '1,8', '--block', '--no-head']
    """
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
            if not isinstance(value, bool):
                words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return words


def show_layers(layers: Sequence[int]) -> str:
    """Numbers of layers for people, neighbours as inclusive ranges.

    >>> show_layers([3, 22, 23, 24])
    '3, 22-24'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def printable(text: str) -> str:
    """Text without control characters but line ends: nothing that moves the cursor or changes colours.

    >>> printable("a\\x1b[31mb\\nc")
    'a[31mb\\nc'
    """
    return "".join(each for each in text if each == "\n" or not unicodedata.category(each).startswith("C"))
