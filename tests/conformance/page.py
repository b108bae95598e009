"""docs/architectures.md, from what the suite found: `make architectures` writes it, a test compares it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path

import torch
import transformers
from architectures import LAYERS, TYPES, VARIANTS
from outcomes import CUTS, EXACT, WRITES, Outcome, outcome

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEAD = """# Architectures

Which cuts are exact, for every causal language model type of transformers {version}, tried on tiny models with random
weights and {layers} layers: the tail (layers {tail}), the middle ({middle}), the first layer ({first}), scattered layers
({scattered}), and all but one ({one}).

- **Exact**: `prune` wrote the cut, plain `transformers` loads it with no missing, unexpected or newly initialised
  tensor, and its fp32 logits equal those of the source with the removed layers bypassed (difference 0; up to 1e-5 where
  the cut narrows a matrix outside the layers, the per-layer embeddings of Gemma 3n and Gemma 4). Three tokens generated
  with the cache, and their logits, agree too. For the scattered cut, `verify --base` and `prune_layers()` on the
  model in memory agree as well.
- **Refused**: nothing is written. The error gives the reason and, if it finds one, the nearest exact cut.

A type that is not listed goes through the same structural check before anything is written, but nobody has compared its
numbers: run `shortstack verify --base` on the result.

| | tail | middle | first | scattered | all but one |
|---|---|---|---|---|---|
| exact, of {types} types | {counts} |

`make architectures` rewrites this page. The configs are in tests/conformance/architectures.py.
"""

WRITING = """shortstack generates text (`self` data, a teacher's answers, probes) for many prompts at
once, padded on the left. Before that it checks on two prompts whether the model gives each the probabilities it gets
alone. If padding changes them, or positions are scaled by the longest row (`longrope`, `dynamic`), or attention selects
the top-k tokens (`index_topk`), prompts of equal length are batched; if batching itself changes them, prompts are
generated one by one. All types and variants above are generated in padded batches, except:
"""

DIFFERING = """
The test suite compares each batch with its prompts generated alone. For some types, cut or not, transformers' `generate`
and a forward pass over the whole text disagree, so generated text and perplexity may not match:

- camembert, data2vec-text, roberta, roberta-prelayernorm, xlm-roberta, xlm-roberta-xl, xmod: `generate` counts positions
  from 0, the forward pass from the padding token's id.
- xlm, xlnet: `generate` appends a token.
- axk2, cpmant, deepseek_v32, dots3_note, dots3_note_text, glm_moe_dsa, hy_v4, minimax, prophetnet: a token's logits
  depend on how many tokens follow it.
- moshi: they differ only when the cache is used.
"""

EVERYWHERE = "exact in every cut"
TABLE = ("| others | refused cuts | reason |", "|---|---|---|")


def entries(outcomes: Mapping[str, Outcome], names: tuple[str, ...]) -> list[str]:
    """Return the names that are exact in every cut, a line for each first letter, and a table row for each other."""
    exact = [name for name in names if line(name, outcomes[name]) == EVERYWHERE]
    letters = [", ".join(f"`{name}`" for name in some) for _, some in groupby(exact, key=lambda name: name[0])]
    others = [line(name, outcomes[name]) for name in names if name not in exact]
    return [f"Exact in every cut ({len(exact)}):", ",\n".join(letters), "", *TABLE, *others]


def line(name: str, found: Outcome) -> str:
    """Return what the page says of a type or variant: EVERYWHERE, or its row."""
    if found.unbuilt:
        return f"| {name} | not tried | {found.unbuilt} |"
    refused = [cut for cut, how in found.cuts.items() if how != EXACT]
    if not refused:
        return EVERYWHERE
    cuts = "all" if len(refused) == len(CUTS) else ", ".join(refused)
    return f"| {name} | {cuts} | {reasons(found)} |"


def reasons(found: Outcome) -> str:
    """Why cuts are refused: of reasons that differ in numbers alone the first."""
    kinds: dict[str, str] = {}
    for reason in found.reasons:
        kinds.setdefault(re.sub(r" \(nearest exact cut: [\d,-]+\)|[\d.]+", "", reason), reason)
    return "; ".join(kinds.values()).replace("|", "\\|")


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The whole page."""
    parts = [
        head([sum(outcomes[name].cuts.get(cut) == EXACT for name in TYPES) for cut in CUTS]),
        "## Types\n",
        *entries(outcomes, TYPES),
        "\n## Variants\n",
        *entries(outcomes, tuple(VARIANTS)),
    ]
    return "\n".join([*parts, "\n## Generated text\n", WRITING, *writing(outcomes), DIFFERING])


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
    """Return what stands above the tables; exact: of how many types each cut is."""
    shown = {name.rpartition(" ")[2]: ", ".join(map(str, layers)) for name, layers in CUTS.items()}
    counts = " | ".join(map(str, exact))
    return HEAD.format(version=transformers.__version__, layers=LAYERS, types=len(TYPES), counts=counts, **shown)


def listed() -> dict[str, str]:
    """Return what the page says now, as line() does, by the names in its lists and tables.

    Raises:
        ValueError: a name is there twice.
    """
    found: dict[str, str] = {}
    sections = PAGE.read_text(encoding="utf-8").partition("## Types")[2].partition("## Generated text")[0]
    for row in sections.splitlines():
        if row in TABLE:
            continue
        names = [row.split(" | ")[0].removeprefix("| ")] if row.startswith("| ") else re.findall("`([^`]+)`", row)
        for name in names:
            if name in found:
                raise ValueError(name)
            found[name] = row if row.startswith("| ") else EVERYWHERE
    return found


def refused_cuts(name: str) -> set[str]:
    """The cuts that the page says are refused, or were not tried."""
    said = listed()[name]
    if said == EVERYWHERE:
        return set()
    cuts = said.split(" | ")[1]
    return {*CUTS} if cuts in ("all", "not tried") else {*cuts.split(", ")}


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
