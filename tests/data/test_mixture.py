"""Several sources with weights: how they are named, and what is read of each."""

import math
import random

import pytest

from shortstack.data import Text, Example, Tokens, read_examples
from shortstack.data.examples import shares
from shortstack.data.in_context import IN_CONTEXT
from shortstack.data.mixture import MIX, READ, parse_sources
from shortstack.data.tokens import check_enough, split
from shortstack.errors import DataError, ShortstackWarning
from shortstack.healing import TrainingData
from zoo import tokenizer

PLAIN, WITH_BOS = tokenizer(), tokenizer(bos=True)
OWN = [[100 + number] * 90 for number in range(64)]


def written(amount):
    return OWN[:amount]


def test_a_file_whose_name_has_commas_and_equals_is_one_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=2,b.txt").write_text("text " * 200)
    assert [(each.source, each.weight) for each in parse_sources("a=2,b.txt")] == [("a=2,b.txt", 1.0)]
    assert [(each.source, each.weight) for each in parse_sources(" a=2, b ")] == [("a", 2.0), ("b", 1.0)]


def test_mix_is_prose_the_models_own_text_copying_and_drills():
    assert parse_sources(READ) == tuple(each for each in parse_sources(MIX) if each.source != "self")
    weighted = [(each.source, each.weight) for each in parse_sources("mix=2,a.txt")]
    assert weighted == [("pydoc", 2.0), ("self", 2.0), ("copying", 2.0), ("drills", 2.0), ("a.txt", 1.0)]


@pytest.mark.parametrize(
    "wrong", ["pydoc=0", "pydoc=-1", "pydoc=nan", "pydoc=much", "pydoc,,self", "=2", "self,self=2", "mix=2,pydoc"]
)
def test_wrong_weights_and_names_are_refused(wrong):
    with pytest.raises(DataError, match="expected"):
        parse_sources(wrong)


def test_windows_of_each_source_stand_together_with_its_weight():
    text = Text("pydoc=2,self,copying=0.5", samples=5, length=64)
    tokens = text.tokens(PLAIN, seed=3, written=written)
    pydoc = Tokens.read("pydoc", PLAIN, samples=5, length=64, seed=3)
    assert tokens.ids[:5].equal(pydoc.ids)
    assert tokens.ids[5:10].flatten().tolist() == [token for text in OWN for token in text][: 5 * 64]
    assert tokens.counted[:10].all()
    assert tokens.record()["kinds"] == [
        {"source": "pydoc", "samples": 5, "weight": 2.0},
        {"source": "self", "samples": 5, "weight": 1.0},
        {"source": "copying", "samples": 5, "weight": 0.5},
    ]


def test_of_a_text_said_twice_the_second_time_counts():
    """Every marked stretch of tokens stands once more before it, unmarked, and no window is without one."""
    tokens = Tokens.read("copying", WITH_BOS, samples=8, length=200, seed=1)
    assert tokens.ids[:, 0].tolist() == [1] * 8
    assert not tokens.counted[:, 0].any()
    for row, counted in zip(tokens.ids.tolist(), tokens.counted.tolist(), strict=True):
        last = max(place for place, counts in enumerate(counted) if counts)
        first = last
        while counted[first - 1]:
            first -= 1
        said = WITH_BOS.decode(row[first : last + 1])
        assert said in WITH_BOS.decode(row[:first])
        assert 0.25 < sum(counted) / len(counted) < 0.6


def test_what_is_asked_of_a_list_is_the_value_that_stands_in_it():
    for seed in range(20):
        passages = IN_CONTEXT["recall"](random.Random(seed), 48)
        listed = dict(line.split(": ") for line in passages[0][0].strip().splitlines())
        asked = [text for text, _ in passages[1:]]
        for key, value, end in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
            assert (listed[key.rstrip(":")], end) == (value.strip(), "\n")
        assert [counts for _, counts in passages[1:4]] == [False, True, False]


def test_windows_too_short_for_a_text_are_refused():
    with pytest.raises(DataError, match="windows that such a text fits into"):
        Tokens.read("copying", PLAIN, samples=2, length=4)


def test_what_has_no_end_has_no_all_and_own_text_needs_a_model():
    for text in ("copying", "mix", "pydoc,self"):
        with pytest.raises(DataError, match="has no end"):
            Text(text, samples="all")
    with pytest.raises(DataError, match="has no end"):
        Tokens.read("copying", PLAIN, samples=None)
    with pytest.raises(DataError, match="a model that writes it"):
        Text("self").tokens(PLAIN)


def test_one_in_four_of_each_kind_is_held_out():
    tokens = Text("pydoc,copying", samples=8, length=64).tokens(PLAIN)
    fitting, held_out = split(tokens)
    assert [kind.samples for kind, _ in fitting.parts] == [6, 6]
    assert [kind.samples for kind, _ in held_out.parts] == [2, 2]
    assert held_out.ids.equal(tokens.ids[[3, 7, 11, 15]])
    assert held_out.counted.equal(tokens.counted[[3, 7, 11, 15]])
    few = Text("pydoc,copying", samples=3, length=64).tokens(PLAIN)
    with pytest.raises(DataError, match="pydoc: expected at least 4 samples"):
        check_enough(few, "more")


def test_a_repair_is_of_so_many_windows_in_all():
    assert Text("pydoc,self,copying").of_all(256).samples == 86
    assert Text("pydoc").of_all(256).samples == 256
    assert Text("pydoc,self,copying").of_all(4).samples == 8, "some are held out, and some judge"


def test_each_source_gives_its_share_of_what_is_learnt(tmp_path):
    (tmp_path / "a.txt").write_text("the walk visits every layer once " * 300)
    whole = read_examples(str(tmp_path / "a.txt"), PLAIN, max_length=32)
    with pytest.warns(ShortstackWarning, match=f"a.txt has {len(whole)} samples, so that all .* give") as warned:
        found = read_examples(f"{tmp_path / 'a.txt'}=2,self,copying=0.5", PLAIN, max_length=32, written=written)
    own = [example for example in found if set(example.ids) <= {text[0] for text in OWN}]
    assert all(all(example.learn) for example in own)
    assert len(own) == round(len(whole) / 2)
    copied = [example for example in found if not all(example.learn)]
    assert len(copied) == round(len(whole) / 4)
    assert len(found) == len(whole) + len(own) + len(copied)
    assert f" give {len(found)};" in str(warned[0].message)
    assert {id(example) for example in found if example.made} == {id(example) for example in own + copied}


def test_no_more_than_most_are_read_in_all():
    found = read_examples("copying,self=3", PLAIN, max_length=64, most=40, written=written)
    assert len(found) == 40
    assert sum(all(example.learn) for example in found) == 30
    assert found == read_examples("copying,self=3", PLAIN, max_length=64, most=40, written=written)
    assert found != read_examples("copying,self=3", PLAIN, max_length=64, most=40, written=written, seed=1)


def test_too_few_samples_to_hold_some_out_say_what_to_raise():
    with pytest.raises(DataError, match="give more data, raise max_samples, or hold out fewer"):
        TrainingData("pydoc", max_samples=0.05).held_out_among([Example((3, 4), (True, True))])


def test_a_share_is_of_what_would_be_read_without_it(tmp_path):
    (tmp_path / "a.txt").write_text("the walk visits every layer once " * 300)
    for data in (str(tmp_path / "a.txt"), f"{tmp_path / 'a.txt'},copying=0.5"):
        whole = read_examples(data, PLAIN, max_length=64)
        assert len(read_examples(data, PLAIN, max_length=64, most=0.25)) == math.ceil(len(whole) / 4)
        assert read_examples(data, PLAIN, max_length=64, most=1.0) == whole


def test_shares_are_never_more_than_most():
    sources = parse_sources("a,b=2,self=0.3")
    for most in (3, 7, 100):
        found = shares(sources, {"a": 50, "b": 60}, most)
        assert sum(found.values()) <= most
        assert min(found.values()) >= 1
    with pytest.raises(DataError, match="at least one sample of each of 3 sources"):
        shares(sources, {"a": 50, "b": 60}, 2)


@pytest.mark.parametrize("length", [96, 512])
@pytest.mark.parametrize("source", ["copying", "recall", "drills"])
def test_windows_of_any_length_are_full_and_something_counts_in_each(source, length):
    tokens = Tokens.read(source, PLAIN, samples=6, length=length)
    assert tokens.ids.shape == (6, length)
    assert tokens.counted.any(dim=1).all()


def test_what_is_learnt_is_not_what_calibrates():
    examples = read_examples("copying", PLAIN, max_length=200, most=8)
    windows = Tokens.read("copying", PLAIN, samples=8, length=200)
    assert not {example.ids for example in examples} & set(map(tuple, windows.ids.tolist()))


def test_a_list_longer_than_a_name_can_be_is_a_list(tmp_path):
    names = [str(tmp_path / f"part-{number:04}.jsonl") for number in range(400)]
    assert [each.source for each in parse_sources(",".join(names))] == names
