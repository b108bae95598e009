"""Config rules against brute force: a rule is right when the new fields mark exactly the layers the old ones marked."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import assume, given
from hypothesis import strategies as st

from shortstack.architecture.config_fields import Cut, cut_fields, rename_layers
from shortstack.errors import ArchitectureError

cuts = st.integers(2, 14).flatmap(
    lambda layers: st.tuples(st.just(layers), st.sets(st.integers(0, layers - 1), min_size=1).map(sorted).map(tuple))
)
small = st.integers(0, 16)


def changed(cut: tuple[int, tuple[int, ...]], **fields: object) -> dict[str, object]:
    return {**fields, **cut_fields(Cut(*cut, fields))}


def marks(layers: int, is_marked) -> list[bool]:
    return [bool(is_marked(layer)) for layer in range(layers)]


def kept_marks(cut: tuple[int, tuple[int, ...]], is_marked) -> list[bool]:
    layers, kept = cut
    before = marks(layers, is_marked)
    return [before[layer] for layer in kept]


@given(cuts, small)
def test_leading_layers(cut, first):
    for name in ("first_k_dense_replace", "max_window_layers", "num_dense_layers"):
        count = changed(cut, **{name: first})[name]
        assert marks(len(cut[1]), range(count).__contains__) == kept_marks(cut, lambda layer: layer < first)


@given(cuts, small)
def test_trailing_layers(cut, last):
    count = changed(cut, num_kv_shared_layers=last)["num_kv_shared_layers"]
    new = len(cut[1])
    assert marks(new, lambda layer: layer >= new - count) == kept_marks(cut, lambda layer: layer >= cut[0] - last)


@given(cuts, st.sets(small))
def test_listed_layers(cut, listed):
    for name in ("mlp_only_layers", "moe_layers", "cross_attention_layers", "global_attn_layers"):
        after = changed(cut, **{name: sorted(listed)})[name]
        assert marks(len(cut[1]), after.__contains__) == kept_marks(cut, listed.__contains__)
        assert after == sorted(set(after))


@given(cuts, st.integers(1, 6), small)
def test_periodic_layers(cut, period, offset):
    """Whenever some period and offset describe the kept layers, the ones found do; otherwise the fields stay."""
    assume(offset < period)
    new = len(cut[1])
    expected = kept_marks(cut, lambda layer: layer % period == offset)

    def fits(period: int, offset: int) -> bool:
        return marks(new, lambda layer: layer % period == offset) == expected

    possible = any(fits(p, o) for p in range(1, new + 2) for o in range(p))
    for kind in ("attn", "expert"):
        fields = {f"{kind}_layer_period": period, f"{kind}_layer_offset": offset}
        after = changed(cut, **fields)
        if possible:
            found = after[f"{kind}_layer_period"], after[f"{kind}_layer_offset"]
            assert fits(*found)
            assert 0 <= found[1] < found[0]  # what jamba's config demands
        else:
            assert after == fields


@given(cuts, st.lists(st.sampled_from(["recurrent", "attention"]), min_size=1, max_size=5))
def test_repeated_pattern(cut, pattern):
    after = changed(cut, block_types=pattern)["block_types"]
    assert [after[layer % len(after)] for layer in range(len(cut[1]))] == [
        pattern[layer % len(pattern)] for layer in cut[1]
    ]


@given(cuts, st.integers(1, 5), st.sets(small))
def test_sparse_step(cut, step, dense):
    """As Qwen MoE reads the two fields."""

    def sparse(fields: dict) -> object:
        return lambda layer: layer not in fields["mlp_only_layers"] and (layer + 1) % fields["decoder_sparse_step"] == 0

    before = {"decoder_sparse_step": step, "mlp_only_layers": sorted(dense)}
    assert marks(len(cut[1]), sparse(changed(cut, **before))) == kept_marks(cut, sparse(before))


@given(cuts, st.data())
def test_a_list_with_one_entry_per_layer_loses_the_removed_ones_and_other_lists_stay(cut, data):
    layers, kept = cut
    per_layer = data.draw(st.lists(st.sampled_from("sf"), min_size=layers, max_size=layers))
    names = {number: f"LABEL_{number}" for number in range(layers)}
    others = {
        "eos_token_id": list(range(layers)),
        "architectures": ["A"] * layers,
        "dtype": ["F32"] * layers,
        "languages": [f"l{layer}" for layer in range(layers)],
        "ssm_multipliers": [0.5] * layers,
        "time_step_limit": (0.0,) * layers,
        "mtp_layer_types": per_layer,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "shorter": per_layer[1:],
        "text": "x" * layers,
    }
    after = changed(cut, layer_types=per_layer, **others)
    assert after == {"layer_types": [per_layer[layer] for layer in kept], **others}


@given(cuts, st.data())
def test_a_mapping_from_layer_numbers_follows_the_layers(cut, data):
    layers, kept = cut
    special = data.draw(st.dictionaries(st.integers(0, layers - 1), st.integers(), min_size=1))
    after = changed(cut, per_layer_config={str(layer): value for layer, value in special.items()})["per_layer_config"]
    assert after == {str(new): special[old] for new, old in enumerate(kept) if old in special}


def halvings(layers: int, every: int) -> list[int]:
    """How often RWKV's forward has halved its hidden states before each layer, and before the final norm."""
    return list(accumulate(((layer + 1) % every == 0 for layer in range(layers)), initial=0))


@given(cuts, st.integers(1, 8))
def test_a_cut_that_changes_how_often_hidden_states_were_halved_is_refused(cut, every):
    layers, kept = cut
    before = halvings(layers, every)
    same = halvings(len(kept), every) == [before[layer] for layer in (*kept, layers)]
    try:
        changed(cut, rescale_every=every)
    except ArchitectureError:
        assert not same or len(kept) == 1
    else:
        assert same
        assert len(kept) > 1


@given(cuts)
def test_layer_names_are_renumbered_wherever_they_stand(cut):
    layers, kept = cut
    new_index = {old: new for new, old in enumerate(kept)}

    def names(numbers) -> list[str]:
        return [name for number in numbers for name in (f"model.layers.{number}.mlp", f"model.layers.{number}")]

    others = ["lm_head", "vision.model.layers.0.mlp", "model.layers_norm", "model.layers.x"]
    before = {
        "bits": 4,
        "skip": names(range(layers)) + others,
        "of": {name: {"bits": 8} for name in names(range(layers))},
    }
    after = rename_layers(before, ["model.layers"], new_index)
    assert after == {
        "bits": 4,
        "skip": names(range(len(kept))) + others,
        "of": {name: {"bits": 8} for name in names(range(len(kept)))},
    }
