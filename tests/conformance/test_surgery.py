"""Cut, write, reload with plain transformers: logits and cached generation equal the source with those layers deleted."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.planning import plan
from shortstack.pruning import prune
from shortstack.verification import verify
from zoo import CUTS, ZOO, pass_over, tiny

IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def source_without(source: Checkpoint, removed: tuple[int, ...], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the source whose removed layers return their input: independent of the walk and of the writer."""
    model = copy.deepcopy(source.model(dtype=torch.float32))
    pass_over(model, source.anatomy.layers_path, removed)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def greedy(source: Checkpoint, removed: tuple[int, ...], ids: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, source_without(source, removed, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model_type", ZOO)
def test_a_cut_computes_what_the_source_computes_without_those_layers(model_type, cut, tmp_path):
    source, removed = Checkpoint.open(tiny(model_type)), CUTS[cut]
    pruned = prune(source, plan(8, layers=removed), tmp_path / "out")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32, output_loading_info=True
        )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS).logits
    assert torch.equal(logits, source_without(source, removed, IDS))

    generated = model.generate(
        IDS, max_new_tokens=5, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(generated, greedy(source, removed, IDS, 5))
    assert verify(pruned, against=source).ok
    assert pruned.anatomy.layers == 8 - len(removed)
