"""Outcomes of cutting an architecture: every cut written by byte surgery, reloaded by plain transformers, and
compared with the source whose removed layers return what enters them.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from architectures import NEEDS, make, pass_over
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, ShortstackError
from shortstack.pruning import prune, prune_layers, verify

CUTS = {"tail": (6, 7), "middle": (3, 4), "first": (0,), "scattered": (1, 4, 6), "all but one": (0, 1, 2, 3, 4, 6, 7)}
EXACT = "exact"
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
GREEDY = {
    "max_new_tokens": 3,
    "do_sample": False,
    "use_cache": True,
    "eos_token_id": None,
    "pad_token_id": 0,
    "output_logits": True,
    "return_dict_in_generate": True,
}
PROMPTS = [tuple(range(40, 45)), tuple(range(20, 33)), tuple(range(50, 63))]
LIMITS = [4, 3, 4]
WRITES = ("in padded batches", "in batches of equal length", "one by one")
# Where transformers' own cache goes wrong for the source too: generation is compared without it.
BROKEN_CACHE = {"minimax, linear and full attention": "it counts tokens in layer 0, which is linear here"}


@dataclass(frozen=True)
class Outcome:
    """How an architecture fared: `exact` or the reason of a refusal for each cut; `unbuilt` says why none was tried.

    writes: how prompts are written together.
    """

    cuts: dict[str, str]
    unbuilt: str = ""
    writes: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for found in self.cuts.values() if found != EXACT))


@torch.no_grad()
def outcome(name: str, folder: Path, cuts: Iterable[str] = CUTS) -> Outcome:
    """Cut one type or variant in every way of CUTS, or in some.

    Raises:
        AssertionError: a cut that was not refused is not exact: that is a bug of shortstack.
    """
    if lacks := [module for module in NEEDS.get(name, ()) if find_spec(module) is None]:
        return Outcome({}, f"not built here: needs {' and '.join(lacks)}")
    try:
        make(name, folder / "source")
    except (
        AttributeError,
        ValueError,
        StrictDataclassError,
    ) as error:  # its own defaults, or AutoModelForCausalLM, fail
        return Outcome({}, f"transformers does not build it: {' '.join(str(error).split())[:160]}")
    try:
        source = Checkpoint.open(folder / "source")
        _ = source.anatomy
    except ShortstackError as error:
        return Outcome(dict.fromkeys(cuts, reason(error, folder)))
    model = source.model(dtype=torch.float32)
    whole = model(input_ids=IDS, use_cache=False).logits
    found = {cut: cut_outcome(name, source, (model, whole), folder / cut) for cut in cuts}
    return Outcome(found, writes=writing_outcome(model))


def writing_outcome(model: PreTrainedModel) -> str:
    """How prompts are written together, of WRITES. Each gets what transformers writes after it alone."""
    from shortstack.decoder import generation

    model.generation_config = GenerationConfig()  # BART's asks for an end token at the end
    alone = [
        model.generate(torch.tensor([prompt]), **{**GREEDY, "max_new_tokens": limit})
        .sequences[0, len(prompt) :]
        .tolist()
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]
    batches, write = [], generation._write

    def recorded(model, prompts, limits, **how):
        batches.append(len(prompts))
        return write(model, prompts, limits, **how)

    with mock.patch.object(generation, "_write", recorded):
        together = generation.generate(model, PROMPTS, LIMITS)
    assert together == alone, f"written together {together}, alone {alone}"
    return WRITES[(len(PROMPTS), 2, 1).index(batches[-1])]


def reason(error: ShortstackError, folder: Path) -> str:
    """A refusal in one line, without advice and without the place where the checkpoint happens to lie."""
    refusal = re.sub(rf"{re.escape(str(folder))}/\w+(/|, |: | is | )?", "", str(error)).partition("; ")[0]
    exact = re.search(r"the nearest exact cut: layers ([\d,-]+)", str(error))
    return refusal + (f" (nearest exact cut: {exact[1]})" if exact else "")


def cut_outcome(name: str, source: Checkpoint, unpruned: tuple[PreTrainedModel, torch.Tensor], out: Path) -> str:
    """EXACT, or the reason why this cut is refused; unpruned: the source's model and logits, out: named by the cut."""
    (model, whole), cut = unpruned, out.name
    removed = CUTS[cut]
    try:
        pruned = prune(source, plan(source.anatomy.layers, layers=removed), out)
    except ShortstackError as error:
        assert not out.exists(), "a refused cut left files"
        return reason(error, out.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shorter, report = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]}
    assert not wrong, f"{cut}: {wrong}"
    without = pass_over(copy.deepcopy(model), source.anatomy.layers_path, removed)
    for weight in (*shorter.parameters(), *shorter.buffers()):
        weight.data = weight.data.clone()  # mapped files lie at odd addresses, where some products round otherwise
    expected = without(input_ids=IDS, use_cache=False).logits
    found = shorter.eval()(input_ids=IDS, use_cache=False).logits
    assert not torch.equal(whole, expected), f"{cut}: the removed layers do nothing, so that nothing is tested"
    narrower = {weight.shape for weight in shorter.parameters()} - {weight.shape for weight in without.parameters()}
    close = torch.allclose(found, expected, rtol=0, atol=1e-5) if narrower else torch.equal(found, expected)
    assert close, f"{cut}: logits differ by {float((found - expected).abs().max()):g}"
    assert generates_like(shorter, without, cached=name not in BROKEN_CACHE), f"{cut}: generation differs"
    if cut == "scattered":  # what verify() and prune_layers() say of others is looked at in tests/pruning
        in_memory(model, removed, found)
        verified = verify(pruned, base=source)
        assert verified.ok, f"{cut}: {verified.to_dict()}"
    return EXACT


def in_memory(model: PreTrainedModel, removed: tuple[int, ...], expected: torch.Tensor) -> None:
    """The loaded model without these layers gives the logits of the pruned checkpoint; what lies by depth is refused."""
    refused = ""
    try:
        shorter = prune_layers(copy.deepcopy(model), plan(8, layers=removed))
    except ArchitectureError as error:
        refused = str(error)
    if refused:
        # parts of other models that are loaded alone (emu3's, mllama's text), or weights by layer outside of the layers
        known = (
            "choose a decoder-only language model",
            "choose a causal language model",
            "prune the checkpoint on disk",
        )
        assert any(fix in refused for fix in known), f"in memory: {refused}"
        return
    assert torch.equal(shorter(input_ids=IDS, use_cache=False).logits, expected), "in memory: logits differ"


def generates_like(shorter: PreTrainedModel, without: PreTrainedModel, *, cached: bool) -> bool:
    """Whether 3 greedy tokens, and the logits of each step, are the reference's; float sums may differ with the shapes."""
    found, expected = (model.generate(IDS, **{**GREEDY, "use_cache": cached}) for model in (shorter, without))
    return torch.equal(found.sequences, expected.sequences) and all(
        torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(found.logits, expected.logits, strict=True)
    )
