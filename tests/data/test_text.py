"""Text: how sources are named and weighted, what is read of each, rows in memory, folders and large files."""

import json
import math
import random
from pathlib import Path

import pytest

from documents import write
from shortstack.data import Text, Tokens, read_examples, sources, tokens
from shortstack.data.examples import own_samples, shares
from shortstack.data.in_context import IN_CONTEXT
from shortstack.data.sources import own_file
from shortstack.data.text import Source
from shortstack.data.tokens import check_enough, split
from shortstack.errors import DataError, InputError, ShortstackWarning
from zoo import tokenizer

PLAIN, WITH_BOS = tokenizer(), tokenizer(bos=True)
OWN = [[100 + number] * 90 for number in range(64)]
PROSE = "the walk visits every layer once "


@pytest.fixture
def own(own_cache):
    """What a model wrote, as a source."""
    file = own_file("a" * 64)
    file.write_text("".join(f"{json.dumps({'texts': texts})}\n" for texts in (OWN[:3], OWN[3:])))
    return str(file)


def weights(source):
    return [(each.name, each.weight) for each in Text(source).sources]


def test_sources_are_a_name_several_names_or_a_mapping(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=2").write_text(PROSE)
    assert weights("my.txt") == weights(Path("my.txt")) == [("my.txt", 1.0)]
    assert weights("a=2") == [("a=2", 1.0)], "a file of that name"
    assert weights(["my.txt=2", "self"]) == weights(("my.txt=2", "self")) == weights({"my.txt": 2, "self": 1})
    assert weights("mix") == [(name, 1.0) for name in ("pydoc", "self", "copying", "drills")]
    assert weights({"mix": 2, "a.txt": 1}) == [
        *((name, 2.0) for name in ("pydoc", "self", "copying", "drills")),
        ("a.txt", 1.0),
    ]
    text = Text({"mix": 2, "a.txt": 1}, samples="10%", length=64)
    assert Text(text.source, text.samples, text.length) == text
    assert text.samples == 0.1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        *(({"source": wrong}, "source") for wrong in (
            "pydoc=0", "pydoc=-1", "pydoc=nan", ["self", "self=2"], ["mix", "pydoc"], {"pydoc": 0}, {"pydoc": "2"}, {}, 3,
            {"train": [{"text": "a"}]}, [], [object()], [{"messages": "a"}, {"image": object()}], [["a", "chat"]],
        )),
        ({"samples": 0}, "samples"),
        ({"samples": 1.5}, "samples"),
        ({"length": 1}, "length"),
    ],
)  # fmt: skip
def test_wrong_texts_are_refused(arguments, option, own_cache):
    with pytest.raises(InputError) as error:
        Text(**arguments)
    assert error.value.option == option


def test_rows_in_memory_are_read_as_a_file_of_the_same(own_cache, tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = ["a text", {"prompt": "q", "completion": "a"}, chat]
    records = [{"text": "a text"}, rows[1], {"messages": chat}]
    text = Text(iter(rows))
    assert Path(text.source).read_text() == Path(write(tmp_path / "a.jsonl", records)).read_text()
    assert text == Text(rows)
    assert not text.name.startswith("/"), "no path of the cache"


@pytest.mark.parametrize("name", ["nothing", "./missing.txt", "mix2", "folder", "pydoc=much"])
def test_unknown_sources_are_refused_by_option(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as error:
        Text(name).check("data")
    assert error.value.option == "data"


def test_windows_of_each_source_stand_together_with_its_weight(own):
    text = Text({"pydoc": 2, own: 1, "copying": 0.5}, samples=5, length=64)
    found = text.tokens(PLAIN, seed=3)
    assert found.ids[:5].equal(Tokens.read("pydoc", PLAIN, samples=5, length=64, seed=3).ids)
    assert found.ids[5:10].flatten().tolist() == [token for text in OWN for token in text][: 5 * 64]
    assert found.counted[:10].all()
    assert found.record()["kinds"] == [
        {"source": "pydoc", "samples": 5, "weight": 2.0},
        {"source": "self", "samples": 5, "weight": 1.0},
        {"source": "copying", "samples": 5, "weight": 0.5},
    ]
    assert found.source == text.name == "pydoc=2, self, copying=0.5"


def test_of_a_text_said_twice_the_second_time_counts():
    """Every marked stretch of tokens stands once more before it, unmarked, and no window is without one."""
    found = Tokens.read("copying", WITH_BOS, samples=8, length=200, seed=1)
    assert found.ids[:, 0].tolist() == [1] * 8
    assert not found.counted[:, 0].any()
    for row, counted in zip(found.ids.tolist(), found.counted.tolist(), strict=True):
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


@pytest.mark.parametrize(
    ("source", "how", "option"),
    [("copying", (2, 4), "length"), ("copying", (None, 64), "samples"), (["pydoc", "drills"], (0.5, 64), "samples")],
)
def test_windows_too_short_or_without_an_end_are_refused(source, how, option):
    with pytest.raises(DataError) as error:
        Text(source, *how).tokens(PLAIN)
    assert error.value.option == option


def test_own_text_needs_a_model():
    with pytest.raises(DataError, match="self"):
        Text("self").tokens(PLAIN)


def test_one_in_four_of_each_kind_is_held_out():
    found = Text(["pydoc", "copying"], 8, 64).tokens(PLAIN)
    fitting, held_out = split(found)
    assert [kind.samples for kind, _ in fitting.parts] == [6, 6]
    assert [kind.samples for kind, _ in held_out.parts] == [2, 2]
    assert held_out.ids.equal(found.ids[[3, 7, 11, 15]])
    assert held_out.counted.equal(found.counted[[3, 7, 11, 15]])
    with pytest.raises(DataError, match="pydoc"):
        check_enough(Text(["pydoc", "copying"], 3, 64).tokens(PLAIN), "more")


def test_a_repair_is_of_a_number_of_windows_in_all():
    assert Text(["pydoc", "self", "copying"]).of_all(256).samples == 86
    assert Text("pydoc").of_all(256).samples == 256
    assert Text(["pydoc", "self", "copying"]).of_all(4).samples == 8, "some are held out, and some judge"


def test_each_source_gives_its_share_of_what_is_learnt(tmp_path, own):
    (tmp_path / "a.txt").write_text(PROSE * 300)
    whole = read_examples(Text(str(tmp_path / "a.txt"), None, 32), PLAIN)
    text = Text({str(tmp_path / "a.txt"): 2, "self": 1, "copying": 0.5}, None, 32)
    assert own_samples(text, PLAIN) == round(len(whole) / 2)
    with pytest.warns(ShortstackWarning, match=r"a\.txt=2, self, copying=0\.5 give") as warned:
        found = read_examples(text.replacing({"self": own}), PLAIN)
    written = [example for example in found if set(example.ids) <= {text[0] for text in OWN}]
    assert all(all(example.learn) for example in written)
    assert len(written) == round(len(whole) / 2)
    copied = [example for example in found if not all(example.learn)]
    assert len(copied) == round(len(whole) / 4)
    assert len(found) == len(whole) + len(written) + len(copied)
    assert f" give {len(found)} samples" in str(warned[0].message)
    assert {id(example) for example in found if example.made} == {id(example) for example in written + copied}


def test_no_more_than_most_are_read_in_all(own):
    text = Text({"copying": 1, own: 3}, 40, 64)
    found = read_examples(text, PLAIN)
    assert len(found) == 40
    assert sum(all(example.learn) for example in found) == 30
    assert found == read_examples(text, PLAIN) != read_examples(text, PLAIN, seed=1)


def test_a_share_is_of_what_would_be_read_without_it(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{number} visits every layer once " for number in range(1000)))
    for source in (str(tmp_path / "a.txt"), {str(tmp_path / "a.txt"): 1, "copying": 0.5}):
        whole = read_examples(Text(source, None, 64), PLAIN)
        assert len(read_examples(Text(source, 0.25, 64), PLAIN)) == math.ceil(len(whole) / 4)
        assert read_examples(Text(source, 1.0, 64), PLAIN) == whole
    every = Text(str(tmp_path / "a.txt"), None, 64).tokens(PLAIN).ids.tolist()
    some = Text(str(tmp_path / "a.txt"), 0.25, 64).tokens(PLAIN).ids.tolist()
    assert len(some) == math.ceil(len(every) / 4)
    assert [every.index(window) for window in some] == sorted(every.index(window) for window in some)


def test_shares_are_never_more_than_most():
    named = [Source("a"), Source("b", 2), Source("self", 0.3)]
    for most in (3, 7, 100):
        found = shares(named, {"a": 50, "b": 60}, most)
        assert sum(found.values()) <= most
        assert min(found.values()) >= 1
    with pytest.raises(DataError) as error:
        shares(named, {"a": 50, "b": 60}, 2)
    assert error.value.option == "max_samples"


@pytest.mark.parametrize("length", [96, 512])
@pytest.mark.parametrize("source", ["copying", "recall", "drills"])
def test_windows_of_any_length_are_full_and_something_counts_in_each(source, length):
    found = Tokens.read(source, PLAIN, samples=6, length=length)
    assert found.ids.shape == (6, length)
    assert found.counted.any(dim=1).all()


def test_what_is_learnt_is_not_what_calibrates():
    examples = read_examples(Text("copying", 8, 200), PLAIN)
    windows = Tokens.read("copying", PLAIN, samples=8, length=200)
    assert not {example.ids for example in examples} & set(map(tuple, windows.ids.tolist()))


def test_a_folder_is_read_as_its_files(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.txt").write_text("alpha " * 400)
    (tmp_path / "more" / "b.txt").write_text("beta " * 400)
    (tmp_path / "notes.md").write_text("gamma " * 400)
    write(tmp_path / "more" / "c.jsonl", [{"text": "delta " * 400}])
    windows = Tokens.read(str(tmp_path), PLAIN, samples=60, length=32).ids.tolist()
    assert {PLAIN.decode(window).split()[1] for window in windows} == {"alpha", "beta", "delta"}
    assert len({*map(tuple, windows)}) > 3
    both = [str(tmp_path / "a.txt"), str(tmp_path / "more")]
    apart = [example.ids for source in both for example in read_examples(Text(source, None, 64), PLAIN)]
    assert sorted(apart) == sorted(example.ids for example in read_examples(Text(str(tmp_path), None, 64), PLAIN))


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A text beyond what is read whole, in pieces of few lines, and the texts that are tokenised."""
    monkeypatch.setattr(sources, "LARGE", 20_000)
    monkeypatch.setattr(sources, "PIECE", 2_000)
    seen = []
    original = tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda made, text: seen.append(text) or original(made, text))
    lines = [f"{number} größer als {number} visits every layer once\n" for number in range(6000)]
    path = tmp_path / "large.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return str(path), lines, seen


def test_of_a_large_text_no_more_is_tokenised_than_is_needed(large):
    path, lines, seen = large
    windows = Tokens.read(path, PLAIN, samples=20, length=32, seed=1)
    assert len({*map(tuple, windows.ids.tolist())}) == 20
    assert sum(map(len, seen)) < sum(map(len, lines)) / 10
    read = "".join(seen)
    assert all(PLAIN.decode(window).strip("\ufffd") in read for window in windows.ids.tolist())
    assert windows.sha256 == Tokens.read(path, PLAIN, samples=20, length=32, seed=1).sha256
    assert windows.sha256 != Tokens.read(path, PLAIN, samples=20, length=32, seed=2).sha256
    seen.clear()
    examples = read_examples(Text(path, 30, 32), PLAIN)
    assert len(examples) == 30
    assert sum(map(len, seen)) < sum(map(len, lines)) / 10
    assert read_examples(Text(path, 30, 32), PLAIN) == examples


@pytest.mark.parametrize("end", ["\n", " "])
def test_the_pieces_of_a_large_text_are_the_text(large, end):
    path, lines, _ = large
    Path(path).write_text("\ufeff" + "".join(lines).replace("\n", end), encoding="utf-8")
    pieces = [record["text"] for record in sources.read_records(path)]
    assert "".join(pieces) == "".join(lines).replace("\n", end)
    assert len(pieces) > 50
    assert end == " " or all(piece.endswith("\n") for piece in pieces)


def test_a_text_is_tokenised_once(tmp_path, monkeypatch):
    seen, original = [], tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda made, text: seen.append(text) or original(made, text))
    (tmp_path / "a.txt").write_text(PROSE * 1000)
    text = Text(str(tmp_path / "a.txt"), 4, 32)
    for each in (PLAIN, tokenizer()):  # one of the base model, one of the pruned model
        text.tokens(each, seed=3)
        read_examples(text, each)
    assert len(seen) == 1
    (tmp_path / "a.txt").write_text(PROSE * 1001)
    assert len(read_examples(Text(text.source, None, 32), PLAIN)) > 4
    text.tokens(WITH_BOS)
    assert len(seen) == 3, "another text; another tokenizer"
