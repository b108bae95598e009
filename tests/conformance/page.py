"""docs/architectures.md, from what the suite found: `make architectures` writes it, a test compares it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from architectures import LAYERS, TYPES, VARIANTS
from outcomes import CUTS, EXACT, WRITES, Outcome, outcome

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEAD = """# Architectures

Every causal language model type of transformers {version}, with tiny random weights: {layers} layers, cut at the tail
({tail}), in the middle ({middle}), at the first layer ({first}), in scattered places ({scattered}), and down to one
layer ({one} removed).

*exact*: the cut was written by byte surgery and loaded by plain `transformers` with no missing, unexpected or newly
initialised tensor; its fp32 logits equal, with difference 0, those of the source whose removed layers return what enters
them (1e-5 is allowed where the cut narrows a matrix outside the layers, Gemma 3n's and Gemma 4's per-layer embeddings: its
products round anew); three tokens generated with the cache, and the logits of each, are the same. Of the scattered cut
`verify --against` agrees, and so does the model cut in memory.
*refused*: nothing was written; the message says why and, if one is found nearby, which cut is exact. A type that is not
listed passes the same check of structure before a byte is written, but its numbers have not been compared: run
`shortstack verify --against` on the result.

| | tail | middle | first | scattered | all but one |
|---|---|---|---|---|---|
| exact, of {types} types | {counts} |

`make architectures` writes this page anew; with another release of transformers, its difference is what that release
changed. The configs are data in tests/conformance/architectures.py.
"""

WRITING = """Text is written by transformers' own `generate`, which for some types, cut or not, is not what a forward of the
whole text gives, so that what such a model writes and its perplexity may disagree. Of the RoBERTa family
(camembert, data2vec-text, roberta, roberta-prelayernorm, xlm-roberta, xlm-roberta-xl, xmod) `generate` counts
positions from 0, and the forward from behind the padding token's id; for xlm and xlnet it adds a token at the
end. In a forward of axk2, cpmant, deepseek_v32, dots3_note, dots3_note_text, glm_moe_dsa, hy_v4, minimax and
prophetnet a token's logits depend on how many tokens follow: deepseek_v32 and glm_moe_dsa select the tokens
that are attended to, and among equal scores by the length. moshi differs with the cache alone.

What a model writes (`self` text, a teacher's answers, probes, the collapse check) is written for many
prompts at once, the shorter padded on the left. A model is tried first, on two prompts: together they must get what each
gets alone. Where padding changes that, or positions are scaled by the longest row (`longrope`, `dynamic`), or
attention picks the best places (`index_topk`), prompts of one length are written together; where a batch does, one
by one. The
types and variants above write padded batches, but for these; of each the suite compares what a batch gets with what its
prompts get alone.
"""


def rows(outcomes: Mapping[str, Outcome], names: tuple[str, ...]) -> list[str]:
    """A table line for each name."""
    return [f"| {name} | {' | '.join(cells(outcomes[name]))} |" for name in names]


def cells(found: Outcome) -> list[str]:
    return [*(found.cells or ("-",) * len(CUTS)), found.unbuilt or "; ".join(found.reasons).replace("|", "\\|")]


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The whole page."""
    table = "| type | tail | middle | first | scattered | all but one | why not |\n|---|---|---|---|---|---|---|"
    parts = [
        head([sum(outcomes[name].cuts.get(cut) == EXACT for name in TYPES) for cut in CUTS]),
        "## Types\n",
        table,
        *rows(outcomes, TYPES),
        "\n## Variants\n",
        table,
        *rows(outcomes, tuple(VARIANTS)),
    ]
    return "\n".join([*parts, "\n## Writing\n", WRITING, *writing(outcomes)]) + "\n"


def writing(outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for each way of writing but the first, with the names that are written so."""
    ways = {way: [name for name, found in outcomes.items() if found.writes == way] for way in WRITES[1:]}
    return [f"- {way}: {'; '.join(names)}" for way, names in ways.items()]


def written(name: str) -> str:
    """How the page says that a type or variant writes."""
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        way, _, names = row.removeprefix("- ").partition(": ")
        if way in WRITES and name in names.split("; "):
            return way
    return WRITES[0]


def head(exact: Sequence[int]) -> str:
    """What stands above the tables; exact: of how many types each cut is."""
    shown = {name.rpartition(" ")[2]: ", ".join(map(str, layers)) for name, layers in CUTS.items()}
    counts = " | ".join(map(str, exact))
    return HEAD.format(version=transformers.__version__, layers=LAYERS, types=len(TYPES), counts=counts, **shown)


def line(name: str) -> str | None:
    """What the page says of a name now; None when it says nothing."""
    start = f"| {name} |"
    return next((row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith(start)), None)


def tried(name: str) -> Outcome:
    """outcome() in a process of its own: tiny matrices, so that more threads only wait for each other."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        return outcome(name, Path(folder))


def main() -> None:
    """Run the suite and write the page."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    names, found = (*TYPES, *VARIANTS), {}
    with ProcessPoolExecutor() as pool:
        for number, (name, what) in enumerate(zip(names, pool.map(tried, names), strict=True), start=1):
            found[name] = what
            sys.stderr.write(f"\r{number}/{len(names)} {name:<60}")
    PAGE.write_text(page(found), encoding="utf-8")
    sys.stderr.write(f"\nwritten: {PAGE.name}\n")


if __name__ == "__main__":
    main()
