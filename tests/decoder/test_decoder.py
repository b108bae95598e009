"""The walk against transformers itself: deleted layers, forward hooks, and counted layer calls."""

import copy

import architectures
import pytest
import torch

import shortstack.decoder.decoder
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, layer_forwards
from shortstack.errors import ArchitectureError
from zoo import ZOO, pass_over, tiny

IDS = torch.randint(3, 90, (3, 11), generator=torch.Generator().manual_seed(2))
LEAVE_ONE_OUT = [UNPRUNED, *(frozenset({layer}) for layer in range(8))]


@pytest.fixture(scope="module", autouse=True)
def one_stream_at_a_time():
    """So that sums are those of the model alone, to the last bit; the tests of stacked streams say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortstack.decoder.decoder, "STACK_TOKENS", 1)
        yield


def load(model_type: str) -> Decoder:
    return Decoder.load(Checkpoint.open(tiny(model_type)), dtype=torch.float32)


@torch.no_grad()
def skipping(decoder: Decoder, skipped, ids=IDS):
    """Logits of a copy of the model whose skipped layers return their input."""
    model = copy.deepcopy(decoder.model)
    pass_over(model, decoder.anatomy.layers_path, skipped)
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("model_type", ZOO)
def test_every_route_of_one_walk_gives_the_logits_of_the_model_without_those_layers(model_type):
    decoder = load(model_type)
    sets = [*LEAVE_ONE_OUT, frozenset({6, 7}), frozenset({0, 3, 4})]
    with torch.no_grad():
        arrived = decoder.walk(IDS, sets)
        for skipped in sets:
            assert torch.equal(decoder.logits(IDS, arrived[skipped]), skipping(decoder, skipped)), skipped


@pytest.mark.parametrize("name", ["zaya", "hy_v4", "gemma3n_text", "mllama", "openai-gpt", "bamba"])
def test_routes_keep_apart_what_layers_share_beside_hidden_states(name, tmp_path):
    """Router states, selections of tokens, and dictionaries of keys and values, against one forward for each skipped."""
    checkpoint = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    sets = [UNPRUNED, *(frozenset({layer}) for layer in range(1, 8)), frozenset({2, 5})]
    ids = IDS % 90
    with torch.no_grad():
        arrived = decoder.walk(ids, sets)
        for skipped in sets:
            alone = architectures.pass_over(
                checkpoint.model(dtype=torch.float32), checkpoint.anatomy.layers_path, tuple(skipped)
            )
            expected = alone(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(
                decoder.logits(ids, arrived[skipped]), expected, atol=1e-5, rtol=1e-5, msg=str(skipped)
            )


@pytest.mark.parametrize("name", sorted({"dory", "rwkv"}.intersection(architectures.TYPES)))  # dory is newer than 5.18
def test_a_model_that_computes_between_its_layers_is_not_walked(name, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    with pytest.raises(ArchitectureError, match="between its layers"):
        Decoder.load(checkpoint, dtype=torch.float32).walk(IDS % 90)


def test_leave_one_out_costs_a_triangle_of_layer_forwards_and_each_is_counted():
    decoder = load("llama")
    decoder.forms()
    calls, ticks = [0] * 8, []
    for index, layer in enumerate(decoder.layers):
        count = lambda *_, index=index: calls.__setitem__(index, calls[index] + 1)  # noqa: E731
        layer.self_attn.register_forward_hook(count)
    with torch.no_grad():
        for _ in decoder.through([decoder.enter(IDS, LEAVE_ONE_OUT)], range(8), on_forward=ticks.append):
            pass
    assert calls == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(ticks) == sum(calls) == layer_forwards(8, LEAVE_ONE_OUT) == 36


@pytest.mark.parametrize(("model_type", "together"), [*((name, 5) for name in ZOO), ("gemma2", 100)])
def test_streams_that_pass_a_layer_together_arrive_as_they_do_alone(model_type, together, monkeypatch):
    decoder = load(model_type)
    with torch.no_grad():
        alone = decoder.walk(IDS, LEAVE_ONE_OUT)
        monkeypatch.setattr(shortstack.decoder.decoder, "STACK_TOKENS", together * IDS.numel())
        stacked = decoder.walk(IDS, LEAVE_ONE_OUT)
    for skipped in LEAVE_ONE_OUT:
        torch.testing.assert_close(stacked[skipped], alone[skipped], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("at", [0, 3, 8])
def test_stopping_before_a_layer_and_starting_there_is_walking_through(at):
    decoder = load("gemma3_text")
    with torch.no_grad():
        entering = decoder.walk(IDS, until=at)[UNPRUNED]
        resumed = decoder.finish(IDS, (at, entering))
        assert torch.equal(resumed, decoder.walk(IDS)[UNPRUNED])


def test_a_walk_leaves_the_model_as_it_was_even_after_an_error():
    decoder = load("llama")
    before = skipping(decoder, ())

    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"), torch.no_grad():
        next(decoder.through([decoder.enter(IDS)], range(8), observe=fail))
    assert all("forward" not in vars(layer) for layer in decoder.layers)
    assert torch.equal(skipping(decoder, ()), before)
