"""Stores of studies that never ran: plausible, clearly synthetic results, for the tests of the report."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shortstack import runs

VERSIONS = {"shortstack": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "python": "3.13.5"}
LAYERS, LAYER_BYTES, OTHER_BYTES = 30, 7_080_192, 56_624_256
TASKS = {"piqa": (0.68, 0.5), "hellaswag": (0.42, 0.25), "arc_easy": (0.55, 0.25), "openbookqa": (0.33, 0.25)}
HARM = {"reverse": 1.0, "ppl": 0.75, "bi": 0.9, "taylor": 0.85, "magnitude-l1": 1.9, "random": 1.6}
HEALS: dict[str, dict[str, Any]] = {
    "partial": {"name": "last 3", "data": "alpaca", "last": 3, "method": "partial"},
    "lora": {"name": "lora", "data": "alpaca", "lr": 2e-4, "method": "lora"},
    "full": {"name": "full", "data": "alpaca", "method": "full"},
}
GAIN = {"partial": 0.55, "lora": 0.45, "full": 0.62}


class Store:
    """A store that is being written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.opened = ExitStack()
        self.store = self.opened.enter_context(runs.Store.open(runs.folder.Folder(folder)))
        self.store.connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")
        self.store.note(title="Which layers a small model can do without")
        self.trials, self.keys = 0, set[str]()

    def step(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        result: Mapping[str, Any] | None,
        *,
        seconds: float = 1.0,
        error: str | None = None,
        state: str | None = None,
    ) -> str:
        """Return the key of a step; one with the same kind and arguments is written once."""
        key = hashlib.sha256(json.dumps([kind, arguments], sort_keys=True).encode()).hexdigest()
        state = state or ("failed" if error else "done")
        outcome = {"started": 1.79e9, "seconds": seconds, "host": "node-1", "versions": VERSIONS, "error": error}
        if key not in self.keys:
            self.keys.add(key)
            self.store.begin(key, kind, arguments, {})
            self.store.end(key, state, outcome if result is None else {**outcome, "result": result})
        return key

    def trial(self, settings: Mapping[str, Any], steps: Mapping[str, str], *, state: str = "done") -> None:
        self.trials += 1
        self.store.put_trial(f"t{self.trials:04d}", number=self.trials, settings=settings, state=state, steps=steps)

    def measured(
        self,
        known: Mapping[str, Any],
        *,
        seconds: Mapping[str, float] | None = None,
        state: str = "done",
        **results: Any,
    ) -> None:
        """A trial with what its steps gave, by role; all trials of a model share what is its own."""
        times, steps = seconds or {}, {}
        for role, result in results.items():
            own = {"role": role, "model": known["model"]} if role.endswith("_base") else {"role": role, **known}
            steps[role] = self.step(role.partition("_")[0], own, result, seconds=times.get(role, 1.0))
        self.trial(known, steps, state=state)

    def close(self) -> None:
        self.opened.close()


def settings(**known: Any) -> dict[str, Any]:
    """A trial's settings with what most trials have."""
    base = {"model": "demo", "drop": "25%", "metric": "reverse", "calibration": None, "layers_per_round": None}
    return {**base, "repair": None, "heal": None, "seed": 0, **known}


def task(outcomes: Iterable[float], metric: str = "acc") -> dict[str, Any]:
    """The result of evaluate for a task with these outcomes: their mean, and sd / sqrt(n)."""
    values = [float(value) for value in outcomes]
    mean, n = sum(values) / len(values), len(values)
    stderr = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else None
    documents = [f"d{number}" for number in range(n)]
    return {"metric": metric, "value": mean, "stderr": stderr, "n": n, "version": "1.0", "higher_is_better": True} | {
        "documents": documents,
        "outcomes": values,
    }


def probe(outcomes: Iterable[float]) -> dict[str, Any]:
    """The result of evaluate for a probe with these outcomes, by item."""
    known = task(outcomes)
    return {name: known[name] for name in ("value", "stderr", "n", "documents", "outcomes")} | {"chance": 0.0}


def perplexity(loss: float, stderr: float | None = 0.02, tokens: int = 20_000) -> dict[str, Any]:
    value = math.exp(loss) if loss < 700 else None
    return {"value": value, "loss": loss, "loss_stderr": stderr, "tokens": tokens, "dtype": "bfloat16"}


def evaluation(quality: float, *, documents: int = 400, names: Iterable[str] = TASKS) -> dict[str, Any]:
    """An evaluation of a model that keeps `quality` (1: as good as unpruned) of what is above chance.

    Each document has its own difficulty, the same for every model, so that outcomes are paired as real ones are.
    """
    tasks = {}
    for name in names:
        best, chance = TASKS[name]
        share = chance + (best - chance) * quality
        difficulty, luck = random.Random(name), random.Random(f"{name}{quality}")
        tasks[name] = task(
            difficulty.random() < share if luck.random() < 0.85 else luck.random() < share for _ in range(documents)
        )
    loss = 2.9 + 2.2 * (1 - quality) ** 1.2
    return {"perplexity": {"wikitext": perplexity(loss), "pydoc": perplexity(loss + 0.3)}, "tasks": tasks} | {
        "probes": {
            "copying": {"value": max(0.0, quality) ** 3, "stderr": 0.03, "n": 100, "chance": 0.0},
            "counting": {"value": 0.6 * max(0.0, quality) ** 4, "stderr": 0.04, "n": 100, "chance": 0.0},
        }
    }


def profile(layers: int) -> dict[str, Any]:
    weight_bytes = OTHER_BYTES + layers * LAYER_BYTES
    speed = [
        {
            "batch": batch,
            "prefill_tokens_per_s": rate * 30 / layers,
            "decode_tokens_per_s": rate / 20 * 31 / (layers + 1),
        }
        for batch, rate in ((1, 900.0), (8, 2100.0))
    ]
    sizes = {"parameters": weight_bytes // 2, "weight_bytes": weight_bytes, "macs_per_token": weight_bytes // 2}
    return {**sizes, "kv_bytes_per_token": 768 * layers, "speed": speed, "peak_bytes": weight_bytes + 200_000_000}


def plan(metric: str, removed: int, seed: int = 0) -> dict[str, Any]:
    """The layers that a metric would remove, and what that saves."""
    gone = sorted(removal(metric, seed)[:removed])
    before, after = (OTHER_BYTES + layers * LAYER_BYTES for layers in (LAYERS, LAYERS - removed))
    kept = [layer for layer in range(LAYERS) if layer not in gone]
    sizes = {"parameters": {"before": before // 2, "after": after // 2}, "bytes": {"before": before, "after": after}}
    return {"layers": LAYERS, "removed": gone, "kept": kept, "strategy": metric, **sizes}


def healed(method: str, loss: float) -> dict[str, Any]:
    """The result of healing that a report reads."""
    return {
        "method": method,
        "trainable_parameters": {"partial": 38_938_176, "lora": 2_442_240, "full": 134_515_008}[method],
        "loss": {"held_out": loss + 0.8 * math.exp(-4)},
        "seconds": {"partial": 410.0, "lora": 655.0, "full": 1290.0}[method],
        "peak_rss_bytes": {"partial": 1_400_000_000, "lora": 1_900_000_000, "full": 3_200_000_000}[method],
    }


def removal(metric: str, samples: int) -> list[int]:
    """The order in which a metric removes layers: the tail first, more or less."""
    noise = random.Random(f"{metric}{samples}")
    spread = {"reverse": 0, "bi": 5, "ppl": 7, "taylor": 4}.get(metric, 60)
    return sorted(range(LAYERS), key=lambda layer: -layer + noise.gauss(0, spread))


def add_trial(store: Store, known: Mapping[str, Any], *, documents: int = 400) -> None:
    """A whole trial with everything a study writes of it."""
    model, metric, drop = known["model"], known["metric"], known["drop"]
    share = float(str(drop).rstrip("%")) / 100
    removed = max(1, round(LAYERS * share))
    seed = known["seed"]
    harm = HARM[metric] * share * 1.8 * (0.7 if known["repair"] else 1) + 0.01 * seed
    if known["calibration"]:
        harm += 0.02 * math.log10(known["calibration"]["samples"])
    if known["layers_per_round"]:
        harm *= 0.97
    quality = max(-0.2, 1 - harm)
    where = {"model": model, "seed": seed}
    steps = {
        "evaluate_base": store.step("evaluate", {"model": model}, evaluation(1.0, documents=documents), seconds=310),
        "profile_base": store.step("profile", {"model": model}, profile(LAYERS), seconds=31),
    }
    text = known["calibration"] or {"samples": 10}
    if metric != "reverse":
        steps["score"] = store.step("score", {**where, "calibration": known["calibration"]}, {}, seconds=48)
    cut = {**where, "metric": metric, "drop": drop, "calibration": known["calibration"]}
    chosen = plan(metric, removed, seed if metric == "random" else text["samples"])
    steps["plan"] = store.step("plan", cut, chosen, seconds=0.02)
    cut |= {"repair": known["repair"], "layers_per_round": known["layers_per_round"]}
    repair = {"fits": [{"layer": layer} for layer in range(8)], "kept": True} if known["repair"] else None
    steps["prune"] = store.step("prune", cut, {**chosen, "repair": repair}, seconds=70 if repair else 1.5)
    left = LAYERS - removed
    steps["profile"] = store.step("profile", {"model": model, "layers": left}, profile(left), seconds=29)
    steps["evaluate_pruned"] = store.step("evaluate", cut, evaluation(quality, documents=documents), seconds=260)
    if known["heal"]:
        method = known["heal"]["method"]
        cut |= {"heal": known["heal"]}
        better = quality + (1 - quality) * GAIN[method] * (1.1 if known["heal"].get("data") == "dolly" else 1)
        made = healed(method, 2.2 + 0.9 * harm - 0.4 * GAIN[method])
        turns = 8 if known["layers_per_round"] else 1
        steps["heal"] = store.step("heal", cut, made, seconds=made["seconds"] * turns)
        after = evaluation(better, documents=documents)
        steps["evaluate_healed"] = store.step("evaluate", {**cut, "of": "healed"}, after, seconds=255)
    store.trial(known, steps)


def grid() -> list[dict[str, Any]]:
    """A study of the kinds of comparison that a report has."""
    calibration = {"text": "pydoc", "samples": 10, "length": 128, "seed": None}
    found = []
    for metric, drop, heal in itertools.product(HARM, ("10%", "25%", "50%"), (None, HEALS["partial"])):
        text = None if metric in ("reverse", "random", "magnitude-l1") else calibration
        found.append(settings(metric=metric, drop=drop, heal=heal, calibration=text))
    found += [settings(drop=drop, heal=HEALS[name]) for drop in ("25%", "50%") for name in ("lora", "full")]
    found += [settings(drop="25%", heal={**HEALS["partial"], "data": data}) for data in ("dolly", "pydoc")]
    for metric, samples in itertools.product(("bi", "taylor"), (1, 50)):
        found.append(settings(metric=metric, calibration={**calibration, "samples": samples}))
    repair = {"text": "pydoc", "samples": 256, "length": 128}
    found.append(settings(repair=repair))
    found += [settings(metric=metric, repair=repair, calibration=calibration) for metric in ("bi", "ppl")]
    found += [settings(layers_per_round=1, heal=HEALS["partial"]), settings(layers_per_round=1, heal=HEALS["lora"])]
    return found


NASTY = "</script><script>window.pwned = 1</script><img src=x onerror=alert(1)> & a name that goes on " + "and-on-" * 20


def write(folder: Path, *, trials: int | None = None, documents: int = 400, nasty: bool = True) -> Path:
    """A study's folder. trials: so many, seeds repeated as needed; None: the grid, with what goes wrong where nasty."""
    store = Store(folder)
    chosen = grid()
    if trials:
        chosen = [{**known, "seed": seed} for seed in range(1 + trials // len(chosen)) for known in chosen][:trials]
    for known in chosen:
        add_trial(store, known, documents=documents)
    if nasty:
        add_failures(store, documents)
    store.close()
    return folder


def add_failures(store: Store, documents: int) -> None:
    """Trials that failed, wait, measured infinities, or have names that are no names."""
    trace = (
        'Traceback (most recent call last):\n  File "heal.py", line 3, in <module>\nTrainingError: <b>loss</b> is NaN'
    )
    wanted = settings(metric="magnitude-l1", drop="75%", heal=HEALS["full"])
    cut = store.step("plan", {"metric": "magnitude-l1", "drop": "75%"}, plan("magnitude-l1", 22))
    failed = store.step("heal", {"drop": "75%", "method": "full"}, None, error=trace, seconds=12)
    store.trial(wanted, {"plan": cut, "heal": failed}, state="failed")
    store.trial(settings(metric="bi", drop="75%"), {}, state="waiting")
    add_trial(store, settings(model=NASTY), documents=documents)
    base = store.step("evaluate", {"model": "demo"}, None)
    for drop, loss, value in (("60%", 800.0, None), ("75%", math.nan, math.nan)):
        known = settings(drop=drop)
        chosen = plan("reverse", round(LAYERS * int(drop[:-1]) / 100))
        measured = {"wikitext": perplexity(12.0) | {"loss": loss, "value": value}}
        bad = evaluation(0.02, documents=documents) | {"perplexity": measured}
        steps = {"plan": store.step("plan", {"drop": drop}, chosen), "evaluate_base": base}
        store.trial(known, {**steps, "evaluate_pruned": store.step("evaluate", {"drop": drop}, bad)})
