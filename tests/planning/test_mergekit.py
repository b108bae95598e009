"""Plans as mergekit's YAML."""

from __future__ import annotations

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shortstack.planning import Plan
from shortstack.planning.mergekit import to_mergekit


@settings(max_examples=30)
@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.text(min_size=1))
def test_slices_are_of_the_layers_that_stay(removed, model):
    wanted = Plan(12, tuple(sorted(removed)), "layers")
    said = yaml.safe_load(to_mergekit(wanted, model))
    spans = [each["sources"][0]["layer_range"] for each in said["slices"]]
    assert "dtype" not in said, "else mergekit converts what it copies"
    assert {each["sources"][0]["model"] for each in said["slices"]} == {model}
    assert [layer for start, end in spans for layer in range(start, end)] == list(wanted.kept)
