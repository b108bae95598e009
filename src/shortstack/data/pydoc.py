"""The text that comes along: the reference topics of Python's standard library."""

from __future__ import annotations

import bisect
import functools
import itertools
import re

HELD_OUT_SHARE = 0.2


def pydoc(held_out: bool) -> str:
    """Read the standard library's reference topics, each paragraph once.

    Topics quote each other, and would leak otherwise.
    """
    from pydoc_data import topics

    texts = "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))
    paragraphs = list(dict.fromkeys(texts.split("\n\n")))
    ends = list(itertools.accumulate(map(len, paragraphs)))
    first = bisect.bisect_left(ends, (1 - HELD_OUT_SHARE) * ends[-1]) + 1
    return "\n\n".join(paragraphs[first:] if held_out else paragraphs[:first])


@functools.cache
def words() -> tuple[str, ...]:
    """List the words of the text that comes along, from the part that calibrates."""
    return tuple(sorted(set(re.findall(r"\b[a-z]{3,9}\b", pydoc(False)))))
