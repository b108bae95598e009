"""Which healing forgets least? One repaired cut, healed by variants of the recipe `best` on about equally many tokens.

    python studies/forgetting.py C4_JSONL LAMBADA_JSONL [DOCUMENTS_JSONL]

Each variant is measured on what it did not learn from: answers of the few-shot families of studies/answers.py, perplexity
on C4, and the last words of LAMBADA's first documents. DOCUMENTS_JSONL: text that the model wrote after BOS. Writes
studies/forgetting.json, to which each call adds the variants that are not in it, and studies/forgetting.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import shortstack as ss
from answers import FAMILIES, answered, perplexity
from shortstack.data.tokens import bos_ids, encode
from shortstack.decoder import Decoder, calibration_tokens
from shortstack.decoder.likelihoods import Request, likelihoods
from shortstack.healing import config_of
from shortstack.healing.recipes import read_recipe
from shortstack.machine.formats import show_layers
from shortstack.machine.options import given

HERE = Path(__file__).parent
CUT, TEXT = (12, 13, 14, 15), "pydoc,self,copying,drills"
SIZE = {"windows": 16, "items": 16, "documents": 200, "steps": 50}  # steps of 8 samples
MIXED, WRITTEN = "self,pydoc,copying=0.5,drills", "self,{},copying=0.5,drills"
Variant = tuple[float, Mapping[str, Any]]  # times as many samples, and options of heal
VARIANTS: Mapping[str, Variant] = {
    "2 samples a step": (1, {"per_device_train_batch_size": 2, "data": MIXED}),
    "8 samples a step": (1, {"data": MIXED}),
    "8, rate doubled": (1, {"data": MIXED, "learning_rate": 4e-3}),
    "8, 1.4 times as many": (1.4, {"data": MIXED}),
    "2, documents for pydoc": (1, {"per_device_train_batch_size": 2, "data": WRITTEN}),
    "8, 1.4 times as many, documents for pydoc": (1.4, {"data": WRITTEN}),
}


def last_words(model: ss.Checkpoint, path: str, amount: int) -> dict[str, float]:
    """The share of LAMBADA's last words that greedy decoding gives, and their mean loss in nats a word."""
    decoder, tokenizer, requests = Decoder.open(model), model.tokenizer(), []
    for line in Path(path).read_text(encoding="utf-8").splitlines()[:amount]:
        context, _, word = json.loads(line)["text"].strip().rpartition(" ")
        before, ending = [*bos_ids(tokenizer), *encode(tokenizer, context)], encode(tokenizer, f" {word}")
        requests.append(Request((*before, *ending), len(before)))
    values = likelihoods(decoder, requests)
    right, loss = sum(value.greedy for value in values), -sum(value.value for value in values)
    return {"accuracy": right / len(values), "loss": loss / len(values)}


def measured(model: ss.Checkpoint, c4: str, lambada: str, size: Mapping[str, int]) -> dict[str, Any]:
    words = last_words(model, lambada, size["documents"])
    return {"answers": answered(model, size["items"]), "C4": perplexity(model, c4), "lambada": words}


def healed(
    source: ss.Checkpoint, pruned: ss.Checkpoint, variant: Variant, out: Path, *, steps: int, documents: str
) -> ss.Checkpoint:
    times, options = variant
    values = {**given(read_recipe("best").heal), "num_train_epochs": 1, "seed": 0, **options}
    values["max_steps"] = round(times * steps * 8 / values["per_device_train_batch_size"])
    values["max_samples"] = round(1.1 * times * steps * 8)  # the rest is held out
    values["data"] = values["data"].format(documents)
    ss.heal(pruned, out, config_of(values), base=source)
    return ss.Checkpoint.open(str(out))


def page(results: Mapping[str, Mapping[str, Any]], command: str, size: Mapping[str, int]) -> str:
    """A row for the unpruned model, the repaired cut, and each variant."""
    lines = [
        f"# Healing that forgets least: SmolLM2-135M-Instruct without layers {show_layers(CUT)}\n",
        f"`{command}`, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}.\n",
        f"{8 * size['steps']} samples of 128 tokens where nothing else is said, one seed; {size['items']} items of each of "
        f"{len(FAMILIES)} families, {size['documents']} documents of LAMBADA. Losses are in nats.\n",
        "| healing | answers | loss of a token of theirs | perplexity on C4 | LAMBADA | loss of its word | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        right = sum(result["answers"][family] for family in FAMILIES) / len(FAMILIES)
        words, seconds = result["lambada"], result.get("seconds")
        lines.append(
            f"| {name} | {right:.1%} | {result['answers']['loss']:.3f} | {result['C4']:.2f} | {words['accuracy']:.1%} "
            f"| {words['loss']:.3f} | {f'{seconds:.0f}' if seconds else ''} |"
        )
    return "\n".join(lines) + "\n"


def run(
    model: str, texts: tuple[str, str, str], names: list[str], size: Mapping[str, int], file: Path
) -> dict[str, Any]:
    """Measure what is not in the file yet. texts: C4, LAMBADA, and what the model wrote after BOS."""
    source, (c4, lambada, documents) = ss.Checkpoint.open(model), texts
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    cut = CUT if source.anatomy.layers > max(CUT) else (2,)
    tokens = calibration_tokens(source, ss.CalibrationText(TEXT, size["windows"]))
    with tempfile.TemporaryDirectory() as folder:
        pruned = ss.prune(source, cut, Path(folder) / "pruned", repair=tokens)
        for name in ("unpruned", "repaired", *names):
            if name in results:
                continue
            checkpoint, began = {"unpruned": source, "repaired": pruned}.get(name), time.perf_counter()
            seconds = None
            if checkpoint is None:
                out = Path(folder) / name
                checkpoint = healed(source, pruned, VARIANTS[name], out, steps=size["steps"], documents=documents)
                seconds = time.perf_counter() - began
            results[name] = {**measured(checkpoint, c4, lambada, size), "seconds": seconds}
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main() -> None:
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    c4, lambada, *documents = sys.argv[1:]
    names = [name for name, (_, options) in VARIANTS.items() if documents or options["data"] == MIXED]
    file = HERE / "forgetting.json"
    results = run("demo", (c4, lambada, *(documents or [""])), names, SIZE, file)
    command = " ".join(["python studies/forgetting.py", *(Path(path).name for path in sys.argv[1:])])
    file.with_suffix(".md").write_text(page(results, command, SIZE), encoding="utf-8")


if __name__ == "__main__":
    main()
