"""What becomes of an architecture when it is cut: every cut written by byte surgery, reloaded by plain transformers, and
compared with the source whose removed layers return what enters them.
"""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from architectures import NEEDS, make, pass_over
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedModel

from shortstack.checkpoint import Checkpoint
from shortstack.errors import ShortstackError
from shortstack.planning import plan
from shortstack.pruning import prune
from shortstack.verification import verify

CUTS = {"tail": (6, 7), "middle": (3, 4), "first": (0,), "scattered": (1, 4, 6)}
EXACT = "exact"
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
GREEDY = {"max_new_tokens": 5, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True)
class Outcome:
    """How an architecture fared: `exact` or the reason of a refusal for each cut; `unbuilt` says why none was tried."""

    cuts: dict[str, str]
    unbuilt: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return tuple(EXACT if found == EXACT else "refused" for found in self.cuts.values())

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for found in self.cuts.values() if found != EXACT))


def outcome(name: str, folder: Path) -> Outcome:
    """Cut one type or variant in every way of CUTS.

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
        return Outcome(dict.fromkeys(CUTS, reason(error, folder)))
    model = source.model(dtype=torch.float32)
    return Outcome({cut: cut_outcome(source, model, cut, folder / cut) for cut in CUTS})


def reason(error: ShortstackError, folder: Path) -> str:
    """A refusal in one line, without the place where the checkpoint happens to lie."""
    where = re.sub(rf"{re.escape(str(folder))}/\w+,? ?", "", str(error.where)).strip()
    exact = re.search(r"the nearest exact cut: --layers (\S+)", error.fix)
    return (
        f"{where}: " * bool(where)
        + f"expected {error.expected}, found {error.found}"
        + (f" (nearest exact cut: {exact[1]})" if exact else "")
    )


def cut_outcome(source: Checkpoint, model: PreTrainedModel, cut: str, out: Path) -> str:
    """EXACT, or the reason why this cut is refused."""
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
    with torch.no_grad():
        whole = model(input_ids=IDS, use_cache=False).logits
        expected = without(input_ids=IDS, use_cache=False).logits
        found = shorter.eval()(input_ids=IDS, use_cache=False).logits
    assert not torch.equal(whole, expected), f"{cut}: the removed layers do nothing, so that nothing is tested"
    assert torch.equal(found, expected), f"{cut}: logits differ by {float((found - expected).abs().max()):g}"
    assert generates_like(shorter, without), f"{cut}: generation with the cache differs"
    verified = verify(pruned, against=source)
    assert verified.ok, f"{cut}: {verified.to_dict()}"
    return EXACT


def generates_like(shorter: PreTrainedModel, without: PreTrainedModel) -> bool:
    """Whether 5 greedy tokens with the cache are the reference's, with its cache or without (minimax's own two differ)."""
    found = shorter.generate(IDS, **GREEDY)
    if torch.equal(found, without.generate(IDS, **GREEDY)):
        return True
    ids = IDS
    for _ in range(GREEDY["max_new_tokens"]):
        with torch.no_grad():
            ids = torch.cat([ids, without(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return torch.equal(found, ids)
