"""Which measure predicts, before healing, how many answers a cut keeps after it?

    python studies/answers.py 4 C4_JSONL [FOLDER]
    python studies/answers.py --smoke        # a tiny model, two cuts

Cuts of so many layers, blocks and single layers far apart, are repaired on windows of pydoc, the model's own text,
copying and drills, and then healed on as many samples each. Before healing each is measured on held-out windows of every
source: loss, KL divergence from the unpruned model, and how often the likeliest token stays the likeliest ("greedy
kept"). After healing it is asked few-shot tasks of FAMILIES, and its perplexity is taken on C4. Their templates are those
of no probe and no drill, but three ask what a probe asks (swap, initials, email), and two what a drill does (middle,
countdown). Writes studies/answers-4.json, which keeps what was measured, and studies/answers-4.md.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy.stats import spearmanr

import shortstack as ss
from shortstack.data.tokens import bos_ids, encode
from shortstack.decoder import Decoder, calibration_tokens
from shortstack.decoder.batching import Batches
from shortstack.decoder.likelihoods import Request, greedy_endings, likelihoods
from shortstack.healing import config_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.formats import show_layers
from shortstack.machine.options import given
from shortstack.machine.progress import silent
from shortstack.repairing.repairer import RepairWalk

HERE = Path(__file__).parent
TEXT, WINDOWS, SAMPLES, SHOTS, ITEMS = "pydoc,self,copying,drills", 8, 96, 4, 16
JUDGING = 48  # windows of drills and of copying that nothing was fitted on
MEASURES = ("loss", "KL", "greedy kept", "KL where sure")
CUTS = {
    4: (
        *((6, 7, 14, 15), (2, 4, 5, 6), (4, 12, 25, 26), (4, 5, 12, 25), (21, 25, 26, 27), (3, 4, 12, 25)),
        *((12, 13, 14, 15), (14, 15, 16, 17), (16, 17, 18, 19), (5, 12, 14, 25), (12, 14, 17, 25), (4, 5, 12, 13)),
        *((3, 5, 9, 12), (9, 10, 12, 13), (21, 22, 25, 26), (4, 5, 26, 27), (5, 9, 13, 25), (12, 17, 26, 27)),
        *((3, 4, 5, 6), (7, 12, 13, 21)),
    ),
    8: (
        *((3, 4, 5, 6, 12, 13, 14, 15), (4, 5, 12, 13, 14, 16, 17, 25), (12, 13, 14, 15, 16, 17, 18, 25)),
        *((3, 4, 5, 9, 12, 13, 25, 26), (4, 5, 6, 7, 12, 13, 25, 26), (12, 13, 14, 15, 21, 22, 25, 26)),
        *((4, 5, 6, 7, 12, 13, 14, 15), (4, 5, 6, 7, 13, 14, 15, 25), (3, 4, 5, 6, 13, 14, 15, 25)),
        *((4, 5, 6, 7, 12, 14, 15, 27), (2, 3, 4, 5, 12, 13, 14, 15), (5, 6, 7, 8, 12, 13, 14, 15)),
        *((3, 4, 5, 6, 7, 8, 9, 10), (12, 13, 14, 15, 16, 17, 18, 19), (3, 4, 5, 6, 7, 12, 13, 14)),
        *((12, 13, 14, 15, 24, 25, 26, 27), (4, 5, 9, 10, 12, 13, 25, 26), (3, 5, 7, 9, 12, 14, 17, 25)),
        *((6, 7, 12, 13, 14, 15, 16, 17), (4, 5, 6, 12, 13, 14, 15, 25)),
    ),
}
PAIRS: Mapping[str, Sequence[tuple[str, str]]] = {
    "Capital of {}:": [
        *(("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("Egypt", "Cairo")),
        *(("Germany", "Berlin"), ("Russia", "Moscow"), ("Greece", "Athens"), ("Cuba", "Havana"), ("Norway", "Oslo")),
        *(("Austria", "Vienna"), ("Portugal", "Lisbon"), ("Ireland", "Dublin"), ("Poland", "Warsaw")),
        *(("Peru", "Lima"), ("China", "Beijing"), ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Turkey", "Ankara")),
        *(("England", "London"), ("Kenya", "Nairobi"), ("Chile", "Santiago")),
    ],
    "{} is the opposite of": [
        *(("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("fast", "slow"), ("old", "new")),
        *(("open", "closed"), ("wet", "dry"), ("happy", "sad"), ("left", "right"), ("strong", "weak")),
        *(("light", "dark"), ("rich", "poor"), ("high", "low"), ("hard", "soft"), ("early", "late")),
        *(("good", "bad"), ("true", "false"), ("full", "empty"), ("long", "short"), ("young", "old")),
    ],
    "one {}, two": [
        *(("dog", "dogs"), ("box", "boxes"), ("city", "cities"), ("child", "children"), ("man", "men")),
        *(("bus", "buses"), ("leaf", "leaves"), ("cat", "cats"), ("baby", "babies"), ("woman", "women")),
        *(("foot", "feet"), ("tooth", "teeth"), ("mouse", "mice"), ("house", "houses"), ("tree", "trees")),
        *(("story", "stories"), ("wife", "wives"), ("dish", "dishes"), ("book", "books"), ("knife", "knives")),
    ],
    "Today I {}, yesterday I": [
        *(("go", "went"), ("eat", "ate"), ("see", "saw"), ("run", "ran"), ("write", "wrote"), ("take", "took")),
        *(("walk", "walked"), ("play", "played"), ("give", "gave"), ("come", "came"), ("know", "knew")),
        *(("think", "thought"), ("buy", "bought"), ("sing", "sang"), ("drink", "drank"), ("read", "read")),
        *(("make", "made"), ("find", "found"), ("speak", "spoke"), ("swim", "swam"), ("fall", "fell")),
    ],
    "{} in digits:": [
        *(("three", "3"), ("seven", "7"), ("twelve", "12"), ("twenty", "20"), ("nine", "9"), ("five", "5")),
        *(("eleven", "11"), ("forty", "40"), ("two", "2"), ("eight", "8"), ("fifteen", "15"), ("sixty", "60")),
        *(("thirty", "30"), ("thirteen", "13"), ("six", "6"), ("four", "4"), ("ninety", "90"), ("fifty", "50")),
    ],
    "{} is a kind of": [
        *(("dog", "animal"), ("apple", "fruit"), ("rose", "flower"), ("hammer", "tool"), ("car", "vehicle")),
        *(("horse", "animal"), ("banana", "fruit"), ("tulip", "flower"), ("saw", "tool"), ("truck", "vehicle")),
        *(("cat", "animal"), ("pear", "fruit"), ("lily", "flower"), ("drill", "tool"), ("bus", "vehicle")),
        *(("cow", "animal"), ("grape", "fruit"), ("daisy", "flower"), ("wrench", "tool"), ("train", "vehicle")),
    ],
}
NAMES = ("anna", "bob", "carl", "dora", "eric", "fred", "gina", "hans", "iris", "john", "kate", "lars", "mary", "nick")
CITIES = ("Lyon", "Bern", "Graz", "Kiel", "Bonn", "Pisa", "York", "Cork", "Bath", "Nice")


def _swap(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(NAMES, 2)
    return f"{a} / {b} becomes", f"{b} / {a}"


def _yaml(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    return f"name: {name}\ntown: {city}\nThe town of {name} is", city


def _email(rng: random.Random) -> tuple[str, str]:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    return f"Write to {name}@{city.lower()}.org today. Address:", f"{name}@{city.lower()}.org"


def _middle(rng: random.Random) -> tuple[str, str]:
    three = rng.sample(NAMES, 3)
    return f"Middle one of {', '.join(three)}:", three[1]


def _initials(rng: random.Random) -> tuple[str, str]:
    three = [each.capitalize() for each in rng.sample(NAMES, 3)]
    return f"{' '.join(three)}, initials", "".join(each[0] for each in three)


def _countdown(rng: random.Random) -> tuple[str, str]:
    first = rng.randint(10, 99)
    return f"Countdown {first} {first - 1} {first - 2}", str(first - 3)


MADE: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    each.__name__.strip("_"): each for each in (_swap, _yaml, _email, _middle, _initials, _countdown)
}
FAMILIES = (*PAIRS, *MADE)


def items(family: str, amount: int) -> Iterator[tuple[str, str]]:
    """Prompts with SHOTS solved examples, and the answer."""
    rng = random.Random(f"answers {family}")
    for _ in range(amount):
        if family in PAIRS:
            shown = [(family.format(question), answer) for question, answer in rng.sample(PAIRS[family], SHOTS + 1)]
        else:
            shown = [MADE[family](rng) for _ in range(SHOTS + 1)]
        *solved, (question, answer) = shown
        yield "".join(f"{one} {other}\n" for one, other in solved) + question, f" {answer}\n"


def answered(model: ss.Checkpoint, amount: int) -> dict[str, float]:
    """Of each family the share of answers that greedy decoding gives, and the mean loss of their tokens as `loss`."""
    decoder, tokenizer = Decoder.open(model), model.tokenizer()
    found: dict[str, float] = {}
    losses, counts = 0.0, 0
    for family in FAMILIES:
        requests = []
        for prompt, answer in items(family, amount):
            before, ending = [*bos_ids(tokenizer), *encode(tokenizer, prompt)], encode(tokenizer, answer)
            requests.append(Request((*before, *ending), len(before)))
        greedy = greedy_endings(decoder, requests)
        found[family] = sum(tuple(each) == one.ending for each, one in zip(greedy, requests, strict=True)) / amount
        losses -= sum(each.value for each in likelihoods(decoder, requests))
        counts += sum(len(each.ending) for each in requests)
    return {**found, "loss": losses / counts}


@torch.no_grad()
def judged(decoder: Decoder, tokens: ss.Tokens, judging: ss.Tokens, removed: frozenset[int]) -> dict[str, float]:
    """Of each source, repaired but not healed: loss, KL and share of kept greedy tokens, on held-out windows and on more."""
    walk = RepairWalk(decoder, removed, tokens, silent, judging).walk()
    few = _means(decoder, walk, walk.choosing, walk.fitting)
    many = _means(decoder, walk, walk.judging, walk.seen)
    return {**few, **{f"{JUDGING} windows of {name}": value for name, value in many.items()}}


def _means(decoder: Decoder, walk: RepairWalk, batches: Batches, first: int) -> dict[str, float]:
    found: dict[str, list[list[float]]] = {}
    for place, (ids, counted, kind) in enumerate(zip(batches.ids, batches.counted, batches.kind_of, strict=True)):
        mask = torch.ones_like(ids, dtype=torch.bool) if counted is None else counted
        whole, short = (each[first + place][:, :-1][mask[:, 1:]] for each in (walk.whole, walk.short))
        targets = ids[:, 1:][mask[:, 1:]]
        p, q = (decoder.token_logits(each).float().log_softmax(-1) for each in (whole, short))
        loss = -q.gather(-1, targets[:, None])[:, 0]
        kl = (p.exp() * (p - q)).sum(-1)
        same = (p.argmax(-1) == q.argmax(-1)).float()
        kl_sure = torch.where(p.amax(-1) > math.log(0.5), kl, torch.nan)
        rows = torch.stack([loss, kl, same, kl_sure], dim=-1).tolist()
        found.setdefault(batches.kinds[kind].source, []).extend(rows)
    means = {}
    for source, values in found.items():
        for name, column in zip(MEASURES, zip(*values, strict=True), strict=True):
            some = [value for value in column if not math.isnan(value)]
            means[f"{source}: {name}"] = sum(some) / len(some)
    return means


def made(source: ss.Checkpoint, removed: Sequence[int], tokens: ss.Tokens, folder: Path, samples: int) -> ss.Checkpoint:
    """The cut, repaired on the same windows and healed by the recipe on its data with drills."""
    pruned = ss.prune(source, removed, folder / "pruned", repair=tokens)
    options = {**given(read_recipe("best").heal), "data": "self,pydoc,copying=0.5,drills", "max_samples": samples}
    ss.heal(pruned, folder / "healed", config_of(options), base=source)
    return ss.Checkpoint.open(str(folder / "healed"))


def measured(source: ss.Checkpoint, removed: Sequence[int], text: str, size: Mapping[str, int]) -> dict[str, Any]:
    began = time.perf_counter()
    tokens = calibration_tokens(source, ss.CalibrationText(TEXT, size["windows"]))
    judging = calibration_tokens(
        source, ss.CalibrationText("drills,copying", size["judging"]), compute=ss.Compute(seed=7)
    )
    before = judged(Decoder.open(source), tokens, judging, frozenset(removed))
    judging = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        healed = made(source, removed, tokens, Path(folder), size["samples"])
        after, pages = answered(healed, size["items"]), perplexity(healed, text)
    seconds = time.perf_counter() - began
    return {"removed": list(removed), "before": before, "after": after, "C4": pages, "seconds": [judging, seconds]}


def perplexity(model: ss.Checkpoint, text: str) -> float:
    found = ss.evaluate(model, text=ss.EvaluationText(text, samples=20), generation=ss.GenerationChecks(False))
    return next(iter(found.perplexity.values())).value


def page(rows: Sequence[Mapping[str, Any]], unpruned: Mapping[str, Any], command: str, size: Mapping[str, int]) -> str:
    """The cuts, best first by what they answer, and how well each measure puts them in that order."""
    base = sum(unpruned["after"][family] for family in FAMILIES) / len(FAMILIES)
    kept = [sum(row["after"][family] for family in FAMILIES) / len(FAMILIES) / base for row in rows]
    losses = [row["after"]["loss"] for row in rows]
    lines = [
        f"# Which measure of a cut predicts its answers: SmolLM2-135M-Instruct without {len(rows[0]['removed'])} layers\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"{len(FAMILIES)} families of few-shot tasks of {size['items']} items each, healed on {size['samples']} samples; "
        f"the unpruned model answers {base:.1%} at a loss of {unpruned['after']['loss']:.3f}, perplexity on C4 "
        f"{unpruned['C4']:.1f}. Three families, swap, initials and email, ask in other words what a probe asks, two, middle "
        "and countdown, what a drill asks.\n",
        "| layers removed | answers kept | loss of answers | perplexity on C4 |",
        "|---|---|---|---|",
    ]
    for share, row in sorted(zip(kept, rows, strict=True), key=lambda pair: -pair[0]):
        layers, loss = show_layers(row["removed"]), row["after"]["loss"]
        lines.append(f"| {layers} | {share:.0%} | {loss:.3f} | {row['C4']:.1f} |")
    known = len(CUTS.get(len(rows[0]["removed"]), rows))
    lines += [
        f"\n{len(rows)} of the script's {known} cuts. Spearman's rank correlation of a measure before healing with what is",
        f"kept after it; of unrelated measures its standard error is {1 / math.sqrt(len(rows) - 1):.2f}.",
        "*Greedy kept* is how often the likeliest token stays the likeliest, *where sure* counts tokens that the unpruned",
        "model gives more than half:\n",
    ]
    lines += ["| measure before healing | answers kept | loss of answers | perplexity on C4 |", "|---|---|---|---|"]
    measures = {name: [row["before"][name] for row in rows] for name in rows[0]["before"]}
    pages = [row["C4"] for row in rows]
    for name, values in _with_sums(measures).items():
        found = [spearmanr(values, each).statistic for each in (kept, losses, pages)]
        lines.append(f"| {name} | {' | '.join(f'{value:+.2f}' for value in found)} |")
    return "\n".join(lines) + "\n"


def _with_sums(measures: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The measures, and means over sources."""
    sources = dict.fromkeys(name.partition(":")[0] for name in measures if "windows of" not in name)
    kinds = dict.fromkeys(name.partition(": ")[2] for name in measures)
    three = [source for source in sources if source != "drills"]
    means = {
        f"mean of {', '.join(some)}: {kind}": [
            sum(each) / len(each) for each in zip(*(measures[f"{source}: {kind}"] for source in some), strict=True)
        ]
        for kind in kinds
        for some in (three, [*sources])
    }
    return {**measures, **means}


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    smoke = sys.argv[1:] == ["--smoke"]
    size = {"windows": WINDOWS, "judging": JUDGING, "samples": SAMPLES, "items": ITEMS}
    drop, text = (2, "pydoc") if smoke else (int(sys.argv[1]), sys.argv[2])
    if smoke:
        size = {"windows": 8, "judging": 2, "samples": 8, "items": 1}
    cuts = [(1, 2), (2, 4)] if smoke else CUTS[drop]
    source = ss.Checkpoint.open(sys.argv[3] if len(sys.argv) > 3 else "demo")
    found = HERE / f"answers-{drop}.json"
    rows = json.loads(found.read_text(encoding="utf-8")) if found.exists() else []
    unpruned = {"after": answered(source, size["items"]), "C4": perplexity(source, text)}
    for cut in cuts:
        if list(cut) not in [row["removed"] for row in rows]:
            rows.append(measured(source, cut, text, size))
            print(json.dumps(rows[-1]), flush=True)
            if not smoke:
                found.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    said = page(rows, unpruned, f"python studies/answers.py {drop} {Path(text).name}", size)
    print(said)
    if not smoke:
        found.with_suffix(".md").write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
