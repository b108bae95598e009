"""Sizes, numbers and times as people read them: on a terminal, a page and in a paper alike."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from shortstack.machine.numbers import is_number

MISSING, INFINITE, NO_NUMBER, MINUS = "–", "∞", "NaN", "−"  # noqa: RUF001  the signs that typography has for them


def shown(value: Any, kind: str = "") -> str:
    """Write a value of a kind, one of FORMS; without a kind an int is a count, and any other number a number.

    Of a pair both ends are written.

    >>> shown(0.5268, "share"), shown(11.254, "perplexity"), shown(1_179_680_000, "parameters"), shown(None), shown(True)
    ('52.7', '11.25', '1.18 B', '–', 'yes')
    >>> shown(float("inf"), "perplexity"), shown(7931.4, "seconds"), shown(0.034, "seconds"), shown((-0.02, 0.01), "points")
    ('∞', '2 h 12 min', '0.03 s', '−2.0 to +1.0')
    """  # noqa: RUF002
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(shown(end, kind) for end in value)
    if not is_number(value):
        return str(value)
    if math.isnan(value):
        return NO_NUMBER
    if math.isinf(value):
        return INFINITE if value > 0 else MINUS + INFINITE
    return FORMS[kind or ("count" if isinstance(value, int) else "number")](value)


def uncertainty(value: Any, stderr: float | None, kind: str) -> str:
    """Write the standard error with as many decimals as its number has; nothing where there is none.

    >>> uncertainty(0.5, 0.0113, "share"), uncertainty(45.02, 0.9, "perplexity"), uncertainty(0.5, None, "share")
    ('1.1', '0.90', '')
    """
    if stderr is None or not is_number(value) or not math.isfinite(stderr) or not math.isfinite(value):
        return ""
    text = shown(value, kind)
    if "e" in text:
        return f"{stderr:.1g}"
    return f"{100 * stderr if kind in ('share', 'points') else stderr:,.{len(text.partition('.')[2])}f}"


def size(nbytes: float) -> str:
    """Write bytes for people.

    >>> size(212_388_480)
    '212.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def number(value: float) -> str:
    """Write a number of any size for people: with four digits, and as a power of ten where digits stop meaning anything.

    >>> [number(value) for value in (11.2543, 1234.5, 7_912_345.0, 0.02113)]
    ['11.25', '1,234', '7.91e+06', '0.02113']
    """
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def in_thousands(value: float, *, gap: str = "") -> str:
    """Write a number with three digits and the letter of its size.

    >>> [in_thousands(value) for value in (12.5, 100.0, 2e4, 5e6, 999_885_952, 1e30)]
    ['12.5', '100', '20k', '5M', '1B', '1e+30']
    """
    for unit, one in (("", 1.0), ("k", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        if value < 999.5 * one:
            return f"{value / one:.3g}{gap if unit else ''}{unit}"
    return f"{value:.0e}"


def _parameters(value: float) -> str:
    return in_thousands(value, gap=" ")


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Write a time for people, in its two largest units.

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


FORMS: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.1f}",  # beside a head that says percent
    "percent": lambda value: _signed(f"{round(100 * value):,}%"),
    "points": lambda value: _signed(f"{100 * value:+.1f}"),
    "score": lambda value: f"{value:.4f}" if abs(value) < 100 else number(value),
    "difference": lambda value: _signed(f"{value:+.4f}"),
    "p": lambda value: f"{value:.2g}",
    "ratio": lambda value: f"{value:.2f}",
    "perplexity": lambda value: number(value) if value >= 999.95 else f"{value:#.4g}",  # zeros too: decimals align
    "number": number,
    "loss": lambda value: f"{value:.4f}",
    "count": lambda value: f"{value:,.0f}",
    "parameters": _parameters,
    "bytes": size,
    "seconds": lambda value: f"{value:.2f} s" if value < 1 else duration(value),
    "rate": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
}


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(amount: int, noun: str) -> str:
    """Write how many there are of something.

    >>> counted(1, "trial"), counted(3, "trial"), counted(2, "perplexity")
    ('1 trial', '3 trials', '2 perplexities')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def brief(name: str, length: int = 40) -> str:
    """Keep the beginning and the end of a long name.

    >>> brief("a" * 30 + "b" * 30, 20)
    'aaaaaaaaaaaa…bbbbbbb'
    """
    tail = (length - 1) * 2 // 5
    return name if len(name) <= length else f"{name[: length - 1 - tail]}…{name[-tail:]}"


PARAMETERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def count_in(units: Mapping[str, int], text: str) -> int | None:
    """Read a number and its unit, in capitals or not; None where it is none.

    >>> count_in(BYTES, "5GB"), count_in(BYTES, "1MiB"), count_in(BYTES, "240"), count_in(PARAMETERS, "6.5B")
    (5000000000, 1048576, None, 6500000000)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?|\.\d{1,9})\s*([A-Z]*)", text.strip().upper())
    return int(Fraction(match[1]) * units[match[2]]) if match and match[2] in units else None


def share_of(text: str) -> float | None:
    """Read the share that is meant by 10% or 0.1; None where it is none, or not above 0 and at most 1.

    >>> share_of("10%"), share_of("0.1"), share_of("100%"), share_of("1.0"), share_of("0%"), share_of("1")
    (0.1, 0.1, 1.0, 1.0, None, None)
    """
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,30})?)(%?)", text.strip())
    if not match or not {".", "%"} & {*text}:
        return None
    share = Fraction(match[1]) / (100 if match[2] else 1)
    return float(share) if 0 < share <= 1 else None


def show_share(share: float) -> str:
    """Write a share as share_of() reads it.

    >>> [show_share(share) for share in (0.1, 1.0, 1e-05, 1 / 3)]
    ['10%', '100%', '0.001%', '33.33333333333333%']
    """
    return f"{(Decimal(repr(float(share))) * 100).normalize():f}%"


def amount_of(text: str) -> float | None:
    """Read the share or the count that is meant; None where it is neither.

    >>> amount_of("10%"), amount_of("1.0"), amount_of("1"), amount_of("some")
    (0.1, 1.0, 1, None)
    """
    return int(text) if text.isdecimal() else share_of(text)


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Spell options as the command line does; None is left out, lists have commas, mappings repeat the option.

    >>> option_words({"batch_size": [1, 8], "repair": True, "head": False, "step": None})
    ['--batch-size', '1,8', '--repair', '--no-head']
    >>> option_words({"data": {"my.txt": 2.0, "self": 1.0}})
    ['--data', 'my.txt=2', '--data', 'self']
    """
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            named = (f"{key}={weight:g}" if weight != 1 else key for key, weight in value.items())
            words += [word for key in named for word in (f"--{name.replace('_', '-')}", key)]
        elif value is not None:
            words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
            if not isinstance(value, bool):
                words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return words


def show_layers(layers: Sequence[int]) -> str:
    """Write numbers of layers for people, neighbours as inclusive ranges.

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
    """Remove control characters from text but line ends and joiners of letters: nothing moves the cursor or changes colours.

    >>> printable("a\\x1b[31mb\\nc")
    'a[31mb\\nc'
    """
    kept = "\n\u200c\u200d"  # the joiners are spelling
    spaced = text.replace("\t", "    ")
    return "".join(char for char in spaced if char in kept or not unicodedata.category(char).startswith("C"))
