"""Plans as mergekit's YAML, and back."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shortstack.errors import InputError, PlanError
from shortstack.planning import Plan
from shortstack.planning.mergekit import plan_of_kept, read_mergekit, to_mergekit


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.text(min_size=1))
def test_a_plan_comes_back(removed, model):
    wanted = Plan(12, tuple(sorted(removed)), "layers")
    said = yaml.safe_load(to_mergekit(wanted, model))
    spans = [each["sources"][0]["layer_range"] for each in said["slices"]]
    assert "dtype" not in said, "else mergekit converts what it copies"
    assert {each["sources"][0]["model"] for each in said["slices"]} == {model}
    assert [layer for start, end in spans for layer in range(start, end)] == list(wanted.kept)


def slices(*spans, model="a", **more):
    return {"slices": [{"sources": [{"model": model, "layer_range": span}]} for span in spans], **more}


def test_slices_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(slices([0, 3], [5, 8], merge_method="passthrough")))
    assert read_mergekit(path) == (0, 1, 2, 5, 6, 7)
    assert plan_of_kept(read_mergekit(path), 8, where=path).removed == (3, 4)
    with pytest.raises(PlanError, match="6 layers"):
        plan_of_kept(read_mergekit(path), 6, where=path)
    with pytest.raises(PlanError, match="8 in all"):
        plan_of_kept(range(8), 8, where=path)
    with pytest.raises(InputError, match="no such file"):
        read_mergekit(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (slices([0, 3], [2, 8]), "each layer once"),
        (slices([5, 8], [0, 3]), "each layer once"),
        (slices([3, 3]), "layer_range"),
        (slices([0, 2.5]), "layer_range"),
        (slices(None), "layer_range"),
        (slices([0, 3], merge_method="ties"), "passthrough"),
        ({"slices": slices([0, 3])["slices"] + slices([5, 8], model="b")["slices"]}, "one model"),
        ({"slices": []}, "slices"),
        ({"models": []}, "slices"),
        ([1], "slices"),
        ({"slices": [{"sources": [{"layer_range": [0, 1]}, {"layer_range": [0, 1]}]}]}, "one source"),
        (b"\xff\xfe\x00", "a YAML file"),
        (b"slices:\n- sources: [\nmerge_method: passthrough\n", "mine.yaml, line 4"),
    ],
)
def test_what_is_no_cut_of_one_model_is_refused(content, found, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    with pytest.raises(InputError, match=found):
        read_mergekit(path)
