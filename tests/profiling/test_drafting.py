"""A shorter model as the draft of its original: what is accepted, counted against what it would itself have written."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.cli import main
from shortstack.errors import InputError
from shortstack.planning import plan
from shortstack.profiling import draft
from shortstack.profiling.drafting import _prompts
from shortstack.pruning import prune
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    whole = Checkpoint.open(speaking(folder / "whole"))
    return whole, prune(whole, plan(8, layers="6-7"), folder / "short")


def test_a_draft_that_is_the_original_is_always_right(pair):
    whole, _ = pair
    found = draft(whole, whole, draft_tokens=3, new_tokens=12)
    assert found.tokens_per_pass == pytest.approx(4.0)
    assert found.accepted == pytest.approx(1.0)
    assert (found.equal, found.prompts) == (8, 8)


def test_what_is_accepted_is_what_the_original_would_have_written(pair):
    whole, short = pair
    found = draft(short, whole, draft_tokens=2, new_tokens=12)
    original, shorter = (each.model(dtype=torch.float32) for each in (whole, short))
    passes = 0
    for prompt in _prompts(whole.tokenizer(), torch.device("cpu")):
        ids, written = prompt, 0
        while written < 12:
            passes += 1
            proposed = ids
            for _ in range(min(2, 12 - written - 1)):
                proposed = torch.cat([proposed, next_token(shorter, proposed)], dim=1)
            for place in range(ids.shape[1], proposed.shape[1] + 1):
                right = next_token(original, proposed[:, :place])
                ids, written = torch.cat([ids, right], dim=1), written + 1
                if place == proposed.shape[1] or not torch.equal(right[0, 0], proposed[0, place]):
                    break
    assert found.tokens_per_pass == pytest.approx(12 * 8 / passes)
    assert 1 <= found.tokens_per_pass <= 3


@torch.no_grad()
def next_token(model, ids):
    return model(ids).logits[:, -1:].argmax(-1)


def test_another_vocabulary_is_refused(pair, tmp_path):
    whole, short = pair
    other = Checkpoint.open(speaking(tmp_path / "other", bos=True))
    words = json.loads((other.directory / "tokenizer.json").read_text())
    words["added_tokens"][0]["content"] = "<other>"
    words["model"]["vocab"] = {word.replace("<pad>", "<other>"): at for word, at in words["model"]["vocab"].items()}
    (other.directory / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(InputError, match="the vocabulary of"):
        draft(short, other)
    with pytest.raises(InputError, match="at least one"):
        draft(short, whole, draft_tokens=0)


def test_by_the_command_line(pair, monkeypatch, capsys):
    whole, short = pair
    words = ["profile", str(short.directory), "--no-speed", "--draft-for", str(whole.directory), "--draft-tokens", "2"]
    monkeypatch.setattr(sys, "argv", ["shortstack", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "As a draft for" in said
    assert "tokens for each pass" in said
    assert ("does not pay" in said) or ("pays" in said)
