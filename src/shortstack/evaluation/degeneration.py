"""Has a model collapsed? What it writes freely, measured: loops, few words, nothing at all."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shortstack.data.tokens import bos_ids, encode
from shortstack.decoder.generation import generate, longest
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PROMPTS = (
    "The city lies on a river, and",
    "In the morning the two brothers",
    "The most important part of an engine is",
    "When water is heated, it",
    "A good teacher knows that",
    "The history of bread begins",
    "To plan a small garden,",
    "Yesterday the government said that",
)
NEW_TOKENS = 64
GRAM = 4  # tokens in a row that count as repeated
LEAST = 0.25  # of the base: below it a measure has fallen. docs/evaluate.md has the measurements behind it
SHOWN = 120  # characters of the sample


@dataclass(frozen=True)
class Fluency:
    """Measures of texts written freely, all in tokens.

    repetition: share of 4-grams that their own text has had before.
    distinct_1, distinct_2: different tokens, and pairs of them, by how many there are in all texts (Li et al. 2016,
        arXiv 1510.03055).
    entropy: of the tokens of all texts, in nats.
    length: tokens per text.
    """

    repetition: float
    distinct_1: float
    distinct_2: float
    entropy: float
    length: float

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Fluency:
        """Measure texts; where nothing was written nothing is distinct, and all is repetition."""
        grams = [_grams(text, GRAM) for text in texts]
        pairs = [pair for text in texts for pair in _grams(text, 2)]
        counts = Counter(token for text in texts for token in text)
        total = counts.total()
        return cls(
            repetition=1 - _share(sum(len(set(text_grams)) for text_grams in grams), sum(map(len, grams))),
            distinct_1=_share(len(counts), total),
            distinct_2=_share(len(set(pairs)), len(pairs)),
            entropy=-sum(count / total * math.log(count / total) for count in counts.values()),
            length=total / len(texts),
        )

    def shares(self, base: Fluency) -> dict[str, float]:
        """Return each measure as a share of the base's, lower being worse; of what the base has nothing of, all is kept.

        Of repetition it is the share of new 4-grams, of entropy that of exp(entropy): so many tokens, used equally
        often, have it.
        """
        return {
            "repetition": _share(1 - self.repetition, 1 - base.repetition, of_nothing=1.0),
            "distinct_1": _share(self.distinct_1, base.distinct_1, of_nothing=1.0),
            "distinct_2": _share(self.distinct_2, base.distinct_2, of_nothing=1.0),
            "entropy": math.exp(self.entropy - base.entropy),
            "length": _share(self.length, base.length, of_nothing=1.0),
        }


TYPICAL = Fluency(repetition=0.16, distinct_1=0.38, distinct_2=0.68, entropy=4.63, length=64.0)
"""SmolLM2-135M-Instruct, unpruned: a small model, so that a larger one is not blamed for its size."""


@dataclass(frozen=True)
class Collapse:
    """The fluency of generated text, against the base model's or, if none is known, against TYPICAL.

    sample: the text with the fewest different tokens, as a JSON string.
    """

    fluency: Fluency
    sample: str
    base: Fluency = TYPICAL
    against_base: bool = False

    def against(self, base: Collapse) -> Collapse:
        """Judge it by what the model it was made from writes."""
        return replace(self, base=base.fluency, against_base=True)

    @property
    def shares(self) -> dict[str, float]:
        """Each measure as a share of the base's, by Fluency.shares()."""
        return self.fluency.shares(self.base)

    @property
    def fallen(self) -> tuple[str, ...]:
        """The measures below a quarter of the base's; any of them is a collapse."""
        return tuple(name for name, share in self.shares.items() if share < LEAST)

    @property
    def warning(self) -> str | None:
        """Name what has fallen and quote what it writes, or None where all is well."""
        if not self.fallen:
            return None
        return f"the model has collapsed ({', '.join(self.fallen)}). It writes: {self.sample}"

    @property
    def summary(self) -> str:
        """In words, whether all is well."""
        if self.fallen:
            return f"It writes: {self.sample}"
        base = "the unpruned model's" if self.against_base else "those of SmolLM2-135M-Instruct"
        least = min(self.shares.values())
        kept = f"variety and length are at least {least:.0%} of {base}"
        return f"Generated text has not collapsed: {kept} (limit {LEAST:.0%}). Read what it writes, too."

    def to_dict(self) -> dict[str, Any]:
        return {
            "collapsed": bool(self.fallen),
            "fallen": list(self.fallen),
            "measures": asdict(self.fluency),
            "base": asdict(self.base),
            "against_base": self.against_base,
            "sample": self.sample,
        }


def check_collapse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, progress: Progress = silent
) -> Collapse:
    """Measure what the model writes after eight prompts, greedily: 64 tokens each, fewer where it ends by itself.

    Loops and silence are seen; varied nonsense is not.
    """
    texts = generate(model, *_prompts(tokenizer), stage="generating text", progress=progress)
    return Collapse(Fluency.of(texts), _sample(texts, tokenizer))


def collapse_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of the longest beginning with what is written after it."""
    return longest(*_prompts(tokenizer))


def _prompts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[int]]:
    prompts = [[*bos_ids(tokenizer), *encode(tokenizer, prompt)] for prompt in PROMPTS]
    return prompts, [NEW_TOKENS] * len(prompts)


def _sample(texts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Quote the text with the fewest different tokens as a JSON string: no control character gets through."""
    worst = min(range(len(texts)), key=lambda number: len(set(texts[number])))
    text = PROMPTS[worst] + tokenizer.decode(texts[worst], skip_special_tokens=True)
    return json.dumps(text[:SHOWN] + "..." * (len(text) > SHOWN))


def _grams(text: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[start:] for start in range(size)), strict=False))


def _share(part: float, whole: float, *, of_nothing: float = 0.0) -> float:
    return part / whole if whole else of_nothing
