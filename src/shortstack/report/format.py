"""Numbers as people read them; every form of the report (page, Markdown, LaTeX) writes them alike."""

from __future__ import annotations

import math
from collections.abc import Callable

from shortstack.machine.formats import duration, number, size

MISSING, INFINITE, NO_NUMBER, MINUS = "–", "∞", "NaN", "−"  # noqa: RUF001  the signs that typography has for them


def shown(value: float | str | None, kind: str) -> str:
    """A value of a kind: one of FORMS, or text.

    >>> shown(0.5268, "share"), shown(11.254, "perplexity"), shown(1_179_680_000, "parameters"), shown(None, "share")
    ('52.7', '11.25', '1.18 B', '–')
    >>> shown(float("inf"), "perplexity"), shown(7931.4, "seconds"), shown(0.034, "seconds"), shown(-0.217, "percent")
    ('∞', '2 h 12 min', '0.03 s', '−22%')
    """  # noqa: RUF002
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return NO_NUMBER
    if math.isinf(value):
        return INFINITE if value > 0 else MINUS + INFINITE
    return FORMS[kind](value)


def uncertainty(value: float, stderr: float | None, kind: str) -> str:
    """The standard error with as many decimals as its number has; nothing where there is none.

    >>> uncertainty(0.5, 0.0113, "share"), uncertainty(45.02, 0.9, "perplexity"), uncertainty(0.5, None, "share")
    ('1.1', '0.90', '')
    """
    if stderr is None or not math.isfinite(stderr) or not math.isfinite(value):
        return ""
    text = shown(value, kind)
    if "e" in text:
        return f"{stderr:.1g}"
    return f"{100 * stderr if kind == 'share' else stderr:,.{len(text.partition('.')[2])}f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points.

    >>> points(0.0123), points(-0.004)
    ('1.2 points', '−0.4 points')
    """  # noqa: RUF002
    text = f"{100 * difference:.1f}"
    return f"{text.replace('-', MINUS)} point{'s' * (text not in ('1.0', '-1.0'))}"


def _parameters(value: float) -> str:
    for unit, one in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= one:
            return f"{value / one:.3g} {unit}"
    return f"{value:.0f}"


def _perplexity(value: float) -> str:
    """Four digits, zeros too, so that numbers below each other have as many decimals."""
    return number(value) if value >= 999.95 else f"{value:#.4g}"


FORMS: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.1f}",
    "percent": lambda value: f"{100 * value:.0f}%".replace("-", MINUS),
    "perplexity": _perplexity,
    "number": lambda value: f"{value:,.4g}",
    "loss": lambda value: f"{value:.3f}",
    "count": lambda value: f"{value:,.0f}",
    "parameters": _parameters,
    "bytes": size,
    "seconds": lambda value: f"{value:.2f} s" if value < 1 else duration(value),
    "rate": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
}


def listed(names: list[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(amount: int, noun: str) -> str:
    """
    >>> counted(1, "trial"), counted(3, "trial"), counted(2, "perplexity")
    ('1 trial', '3 trials', '2 perplexities')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{amount:,} {noun if amount == 1 else plural}"
