"""Windows, the BOS rule, and which tokens of each data format count in the loss."""

import hashlib
import json
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from documents import write
from shortstack.data import Text, Tokens, examples, read_examples, sources
from shortstack.data.sources import prompt_and_response, read_documents
from shortstack.data.tokens import bos_ids, encode, encode_after
from shortstack.errors import DataError
from shortstack.healing import HealingConfig
from zoo import tokenizer

PLAIN, WITH_BOS, CHAT = tokenizer(), tokenizer(bos=True), tokenizer(chat=True)


def like_llama_2():
    """A tokenizer that puts a space before all that it is given, and has bytes for what it does not know."""
    words = ["Name", "Anna", "Answer", ":", "Paris", "is", "a"]
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *words, *(f"▁{word}" for word in words)]
    scored = [("<unk>", 0.0), *((piece, -float(len(piece) < 2)) for piece in pieces)]
    backend = Tokenizer(models.Unigram(scored, 0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def read(path, made=PLAIN, length=512, samples=None, seed=0):
    return read_examples(Text(str(path), samples, length), made, seed)


def read_rows(tmp_path, rows, made=PLAIN, **how):
    return read(write(tmp_path / "a.jsonl", rows), made, **how)


def learnt(example, made):
    return made.decode([token for token, counts in zip(example.ids, example.learn, strict=True) if counts])


def conversation(*turns):
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}


@pytest.mark.parametrize("tokens", [like_llama_2(), PLAIN], ids=["a space before all", "none"])
@pytest.mark.parametrize(("before", "after"), [("Name:", " Anna"), ("Answer:\n", "Paris is"), ("Anna\n\n", "Name: a")])
def test_text_behind_text_is_tokenised_as_in_the_whole(before, after, tokens):
    assert encode(tokens, before) + encode_after(tokens, after) == encode(tokens, f"{before}{after}")


@pytest.mark.parametrize("source", ["drills", "recall", "copying"])
def test_no_text_of_a_window_but_the_first_begins_with_a_space_of_its_own(source):
    tokens = like_llama_2()
    space, line_end = tokens.convert_tokens_to_ids(["▁", "<0x0A>"])
    windows = Tokens.read(source, tokens, samples=3, length=768).ids.tolist()
    assert any(line_end in window for window in windows)
    assert not [pair for window in windows for pair in pairwise(window) if pair == (line_end, space)]


def test_windows_of_one_text_are_seeded_parts_of_it(tmp_path):
    text = " ".join(map(str, range(2000)))
    (tmp_path / "a.txt").write_text(text)
    path, ids = str(tmp_path / "a.txt"), encode(PLAIN, text)
    every = Tokens.read(path, PLAIN, samples=None, length=32).ids
    assert every.flatten().tolist() == ids[: len(ids) // 32 * 32]
    windows, again, other = (Tokens.read(path, PLAIN, samples=20, length=32, seed=seed) for seed in (1, 1, 2))
    assert len({every.tolist().index(window) for window in windows.ids.tolist()}) == 20
    flat = b"".join(int(token).to_bytes(4, "little") for token in windows.ids.flatten())
    assert again.sha256 == hashlib.sha256(flat).hexdigest() != other.sha256


def test_bos_is_added_where_the_tokenizer_adds_it_and_recorded(tmp_path):
    (tmp_path / "a.txt").write_text("layers " * 400)
    with_bos, without = (Tokens.read(str(tmp_path / "a.txt"), made, samples=5, length=16) for made in (WITH_BOS, PLAIN))
    assert (bos_ids(WITH_BOS), bos_ids(PLAIN)) == ([1], [])
    assert with_bos.ids[:, 0].tolist() == [1] * 5
    assert with_bos.ids.shape == without.ids.shape == (5, 16)
    assert (with_bos.record()["bos"], without.bos) == (True, False)
    assert 1 not in with_bos.ids[:, 1:]


@pytest.mark.parametrize("samples", [1, 4])
def test_several_documents_give_one_window_each(tmp_path, samples):
    path = write(tmp_path / "a.jsonl", [{"text": f"{word} " * 60} for word in ("alpha", "beta", "gamma", "delta", "x")])
    tokens = Tokens.read(path, PLAIN, samples=samples, length=24)
    assert tokens.ids.shape == (samples, 24)
    assert len({PLAIN.decode(window).split()[1] for window in tokens.ids.tolist()}) == samples
    with pytest.raises(DataError):
        Tokens.read(path, PLAIN, samples=6, length=24)
    assert len(Tokens.read(path, PLAIN, samples=6, length=24, at_least=5).ids) == 5


def test_the_held_out_part_of_pydoc_is_the_last_fifth_and_shares_no_paragraph():
    (calibration,), (held_out,) = read_documents("pydoc"), read_documents("pydoc", held_out=True)
    assert 0.15 < len(held_out) / (len(calibration) + len(held_out)) <= 0.2
    assert not set(calibration.split("\n\n")) & set(held_out.split("\n\n"))


def test_alpaca_and_dolly_learn_the_response_and_its_end_only(tmp_path):
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "three"}
    dolly = {"instruction": "Name it.", "context": "", "response": "walk", "category": "qa"}
    found = read_rows(tmp_path, [alpaca, dolly, {"prompt": "Q: why\nA:", "completion": " because"}])
    pairs = sorted((learnt(example, PLAIN), PLAIN.decode(example.ids)) for example in found)
    assert [answer for answer, _ in pairs] == [" because</s>", "three</s>", "walk</s>"]
    assert "### Input:\n1 and 2\n\n### Response:\nthree" in pairs[1][1]
    assert "further context" in pairs[1][1]
    assert "### Input" not in pairs[2][1]
    assert prompt_and_response(alpaca)[1] == "three"


@pytest.mark.parametrize(
    ("record", "learnt_text"),
    [
        ({"instruction": "Say.", "input": None, "output": "Hi", "response": None, "messages": None}, "Hi</s>"),
        ({"text": None, "prompt": "Q:", "completion": " A"}, " A</s>"),
        ({"text": "Q: A", "prompt": "Q:", "completion": " A"}, " A</s>"),
        ({"instruction": "Say.", "input": "", "output": "Hi", "text": "Say.\n\nHi"}, "Hi</s>"),  # tatsu-lab/alpaca
        ({"instruction": "Say.", "response": "Hi", "text": "Say. Hi"}, "Hi</s>"),
    ],
)
def test_learns_the_response_of_a_record_with_null_or_text_fields(record, learnt_text, tmp_path):
    (example,) = read_rows(tmp_path, [record])
    assert learnt(example, PLAIN) == learnt_text
    assert "None" not in PLAIN.decode(example.ids)


WRONG = [
    '{"instruction": "Say.", "output": 5}',
    '{"instruction": "Say.", "response": "Hi", "context": ["a"]}',
    '{"instruction": "Say.", "output": null}',
    '{"text": {"en": "a"}}',
    '{"messages": "hello"}',
    '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": null}]}',
    '{"messages": [{"role": 5, "content": "a"}]}',
    '{"question": "?"}',
    "[1]",
    "{broken",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_shown(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a line"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", [b"", b" \n", b"caf\xe9", b'{"text": "a"}', b"[1]", b"[{]"])
def test_files_without_records_are_refused(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("record", [{"text": "\ud800 abc"}, conversation("\ud800", "a")])
def test_half_a_character_is_refused(record, tmp_path):
    with pytest.raises(DataError, match="lone surrogate"):
        read_rows(tmp_path, [record], CHAT)


@pytest.mark.parametrize("name", ["a.json", "a.JSONL", "a.Json"])
def test_a_json_list_reads_like_lines_and_endings_in_any_case(name, tmp_path):
    rows = [{"prompt": "layers", "completion": f" all {number}"} for number in range(3)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / name).write_text(json.dumps(rows) if name.lower().endswith("json") else f"\ufeff{lines}")
    assert read(tmp_path / name) == read_rows(tmp_path / "lines", rows)


def test_chat_learns_every_assistant_turn_and_nothing_else(tmp_path):
    (example,) = read_rows(tmp_path, [conversation("hello", "good day", "more", "done")], CHAT)
    assert learnt(example, CHAT) == "good day</s>done</s>"
    turns = ("user: hello", "assistant: good day", "user: more", "assistant: done")
    assert CHAT.decode(example.ids) == "".join(f"<s>{turn}</s>" for turn in turns)


def test_text_counts_whole_and_is_cut_to_length(tmp_path):
    (tmp_path / "a.txt").write_text("every layer once " * 50)
    found = read(tmp_path / "a.txt", WITH_BOS, 32)
    assert all(len(example.ids) <= 32 and example.ids[0] == 1 and all(example.learn) for example in found)
    assert sum(len(example.ids) - 1 for example in found) == len(encode(WITH_BOS, "every layer once " * 50))


def test_an_example_whose_response_is_cut_off_is_dropped_and_none_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match="max_length"):
        read_rows(tmp_path, [{"instruction": "word " * 100, "output": "never seen"}], length=16)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "Range too big"),
        ("{{ messages[-1].role }}: {{ messages[-1].content }}", "renders the prompt differently"),
        (None, "chat template"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_one_message(template, reason, tmp_path):
    strict = tokenizer(chat=True)
    strict.chat_template = template
    with pytest.raises(DataError, match=reason):
        read_rows(tmp_path, [conversation("q", "a")], strict)


def test_of_a_hub_set_no_more_rows_are_read_than_samples_are_asked_for(monkeypatch):
    rows_read = []

    def rows(_source, seed):
        for number in range(10_000):
            rows_read.append(number)
            yield {"prompt": f"{seed}: ", "completion": str(number) if number % 2 else ""}

    monkeypatch.setattr(sources, "hub_records", rows)
    silent = tokenizer()
    silent.eos_token = None  # every second row has nothing to learn
    found = read("org/name", silent, samples=10, seed=3)
    assert (len(found), len(rows_read)) == (10, 20)
    assert found == read("org/name", silent, samples=10, seed=3)
    rows_read.clear()
    assert len(read_examples(Text(["org/name", "copying=2"], 9, 64), silent)) == 9
    assert len(rows_read) == 6
    rows_read.clear()
    assert len(read("org/name", silent, samples=0.01)) == 50
    assert len(rows_read) == 10_000, "a share is of all"


@pytest.mark.parametrize(
    ("name", "parts"),
    [("org/name", ("org/name", None, "train")), ("org/name@v1:test[:5]", ("org/name", "v1", "test[:5]"))],
)
def test_a_hub_set_is_streamed_by_revision_and_split(name, parts, monkeypatch):
    import datasets

    class Rows(list):
        def shuffle(self, seed):
            return [*self, {"text": f"seed {seed}"}]

    def load(name, *, revision, split, streaming):
        assert (name, revision, split, streaming) == (*parts, True)
        return Rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("shortstack.machine.hub._answers", lambda: True)
    assert [*sources.read_records(name, seed=7)] == [{"text": "seed 7"}]


def test_of_a_file_records_are_drawn_before_they_are_tokenised(tmp_path, monkeypatch):
    texts, seen = [f"{number} walks visit every layer" for number in range(300)], []
    monkeypatch.setattr(examples, "encode", lambda made, text: seen.append(text) or encode(made, text))
    found = [read_rows(tmp_path, [{"text": text} for text in texts], samples=10, seed=seed) for seed in (0, 1)]
    assert ([len(each) for each in found], len(seen)) == ([10, 10], 20)
    assert found[0] != found[1]
    assert max(texts.index(text) for text in seen[:10]) > 100, "not the first of the file"


THINKING = """{% for message in messages %}<s>{{ message.role }}: {% if message.role == 'assistant' and not loop.last %}\
{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %}</s>{% endfor %}\
{% if add_generation_prompt %}<s>assistant: {% endif %}"""
BREAKING = """{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}</s>{% endfor %}\
{% if add_generation_prompt %}<s>assistant\n{% endif %}"""


@pytest.mark.parametrize("others", [[], ["copying"]])
@pytest.mark.parametrize("held_out", [1, 2, 3])
def test_all_answers_of_a_conversation_are_held_out_or_none(held_out, others, tmp_path):
    dropping = tokenizer(chat=True)
    dropping.chat_template = THINKING
    chats = [
        conversation(*(f"{part} {chat} {turn}" for turn in range(3) for part in ("q", "<think>x</think>a")))
        for chat in range(12)
    ]
    data = [write(tmp_path / "a.jsonl", chats), *others]
    config = HealingConfig(data=data, max_samples=24, max_length=128, held_out=held_out)
    found = read_examples(config.text, dropping)
    line = config.count_held_out(found)
    assert held_out <= line < held_out + 3
    sides = [
        {number for number in range(12) if any(f": q {number} 0" in dropping.decode(each.ids) for each in side)}
        for side in (found[:line], found[line:])
    ]
    assert all(sides) or others
    assert not sides[0] & sides[1]


def test_a_token_across_the_start_of_an_answer_does_not_count_and_the_rest_of_it_does(tmp_path):
    merging = tokenizer(chat=True)
    merging.chat_template = BREAKING
    merging.add_tokens(["\n" * 4])
    chat = conversation("q", "\n\n\ncode", "more", "\n\n\n\nfour", "last", "done")
    (example,) = read_rows(tmp_path, [chat], merging)
    assert [merging.decode(token) for token in example.ids].count("\n\n\n\n") == 2
    assert learnt(example, merging) == "code</s>\nfour</s>done</s>"


def test_a_template_that_drops_what_earlier_turns_thought_gives_a_sample_for_each_answer(tmp_path):
    dropping = tokenizer(chat=True)
    dropping.chat_template = THINKING
    answers = ["<think>x</think>first", "<think>y</think>second"]
    found = read_rows(tmp_path, [conversation("one", answers[0], "two", answers[1])], dropping)
    found = sorted(found, key=lambda example: len(example.ids))
    assert [learnt(example, dropping) for example in found] == [f"{answer}</s>" for answer in answers]
    assert "assistant: first</s>" in dropping.decode(found[1].ids)
