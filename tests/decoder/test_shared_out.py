"""Models whose layers accelerate has shared out, here to memory and disk: what is measured is the same."""

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.planning import select_layers
from shortstack.pruning import prune
from shortstack.scoring import score
from zoo import tiny

IDS = torch.randint(3, 90, (8, 12), generator=torch.Generator().manual_seed(2))
TOKENS = Tokens.given(IDS)
IN_ONE_PLACE = Compute(dtype="float32")


@pytest.fixture
def shared_out(monkeypatch):
    """As accelerate leaves a model on a machine with little memory: every other layer, and the last norm, on disk."""

    def infer(model, *_of, **_how):
        layers = {f"model.layers.{number}": "disk" if number % 2 else "cpu" for number in range(8)}
        around = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head"), "cpu")
        return {**around, **layers, "model.norm": "disk"}

    monkeypatch.setattr("transformers.integrations.accelerate.infer_auto_device_map", infer)
    return Compute(dtype="float32", device_map="auto")


def test_layers_lie_where_accelerate_has_put_them(shared_out):
    decoder = Decoder.open(Checkpoint.open(tiny("llama")), shared_out)
    assert [next(layer.parameters()).is_meta for layer in decoder.layers] == [False, True] * 4
    assert str(decoder.device) == "cpu"


def test_scores_are_those_of_a_model_in_one_place(shared_out):
    checkpoint, metrics = Checkpoint.open(tiny("gemma2")), ["bi", "ppl", "kl"]
    apart = score(checkpoint, TOKENS, metrics=metrics, window=2, compute=shared_out)
    whole = score(checkpoint, TOKENS, metrics=metrics, window=2, compute=IN_ONE_PLACE)
    assert {name: pytest.approx(values, rel=1e-5) for name, values in whole.scores.items()} == apart.scores
    assert apart.blocks["kl"] == pytest.approx(whole.blocks["kl"], rel=1e-4)
    greedily = {"metric": "ppl", "drop": 2, "step": 1}
    cuts = [select_layers(checkpoint, TOKENS, **greedily, compute=each).removed for each in (shared_out, IN_ONE_PLACE)]
    assert cuts[0] == cuts[1]


def test_weights_that_cannot_be_read_from_their_file_again_cannot_lie_on_disk(shared_out):
    """Experts, which transformers joins as it reads them."""
    with pytest.raises(InputError, match="on disk") as error:
        Decoder.open(Checkpoint.open(tiny("mixtral")), shared_out)
    assert error.value.option == "device_map"


def test_what_needs_weights_in_one_place_is_refused(shared_out, tmp_path):
    checkpoint = Checkpoint.open(tiny("llama"))
    for refused in (
        lambda: score(checkpoint, TOKENS, metrics=["taylor"], compute=shared_out),
        lambda: select_layers(checkpoint, TOKENS, drop=2, strategy="repaired-blocks", compute=shared_out),
        lambda: prune(checkpoint, [3], tmp_path / "out", repair=TOKENS, compute=shared_out),
    ):
        with pytest.raises(InputError, match="one place") as error:
            refused()
        assert error.value.option == "device_map"
