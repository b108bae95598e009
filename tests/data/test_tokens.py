"""Windows, the BOS rule, and which tokens of each data format count in the loss."""

import hashlib
import json
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from documents import write
from shortstack.data import Tokens, read_examples, sources
from shortstack.data import examples as examples_module
from shortstack.data.sources import prompt_and_response, read_documents
from shortstack.data.tokens import bos_ids, encode, encode_after
from shortstack.errors import DataError
from shortstack.healing import TrainingData
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


def test_all_windows_of_a_text_are_the_text(tmp_path):
    text = "the walk visits every layer once, and in order. " * 40
    (tmp_path / "a.txt").write_text(text)
    tokens = Tokens.read(str(tmp_path / "a.txt"), PLAIN, samples=None, length=16)
    ids = encode(PLAIN, text)
    assert tokens.ids.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert not tokens.bos


def test_bos_is_added_where_the_tokenizer_adds_it_and_recorded(tmp_path):
    (tmp_path / "a.txt").write_text("layers " * 400)
    tokens = Tokens.read(str(tmp_path / "a.txt"), WITH_BOS, samples=5, length=16)
    assert bos_ids(WITH_BOS) == [1]
    assert bos_ids(PLAIN) == []
    assert tokens.ids[:, 0].tolist() == [1] * 5
    assert tokens.ids.shape == (5, 16)
    assert tokens.record()["bos"] is True
    assert 1 not in tokens.ids[:, 1:]


@pytest.mark.parametrize("name", ["chats.JSONL", "chats.Json"])
def test_the_ending_of_a_file_may_be_written_large(name, tmp_path):
    rows = [{"prompt": "layers", "completion": " all"}] * 3
    text = json.dumps(rows) if name.lower().endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / name).write_text(text)
    found = read_examples(str(tmp_path / name), PLAIN, max_length=16)
    assert len(found) == 3
    assert not all(found[0].learn), "a prompt counts in no loss"


def test_half_a_character_is_refused_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SHORTSTACK_CACHE", str(tmp_path))
    source = sources.source_of(["broken \ud83d"])
    with pytest.raises(DataError, match="lone surrogate"):
        read_examples(source, PLAIN, max_length=16)


def test_windows_of_one_text_are_seeded_and_do_not_overlap(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(str(number) for number in range(2000)))
    path = str(tmp_path / "a.txt")
    windows = Tokens.read(path, PLAIN, samples=20, length=32, seed=1).ids
    whole = Tokens.read(path, PLAIN, samples=None, length=32).ids.tolist()
    places = [whole.index(window) for window in windows.tolist()]
    assert len(set(places)) == 20
    again, other = (Tokens.read(path, PLAIN, samples=20, length=32, seed=seed) for seed in (1, 2))
    flat = b"".join(int(token).to_bytes(4, "little") for token in windows.flatten())
    assert again.sha256 == hashlib.sha256(flat).hexdigest() != other.sha256


@pytest.mark.parametrize("samples", [1, 4])
def test_several_documents_give_one_window_each(tmp_path, samples):
    path = write(tmp_path / "a.jsonl", [{"text": f"{word} " * 60} for word in ("alpha", "beta", "gamma", "delta", "x")])
    tokens = Tokens.read(path, PLAIN, samples=samples, length=24)
    words = {PLAIN.decode(window).split()[1] for window in tokens.ids.tolist()}
    assert tokens.ids.shape == (samples, 24)
    assert len(words) == samples


def test_the_held_out_part_of_pydoc_is_the_last_fifth_and_shares_no_paragraph():
    (calibration,), (held_out,) = read_documents("pydoc"), read_documents("pydoc", held_out=True)
    share = len(held_out) / (len(calibration) + len(held_out))
    assert 0.15 < share <= 0.2
    assert not set(calibration.split("\n\n")) & set(held_out.split("\n\n"))


def learnt(example, made):
    return made.decode([token for token, counts in zip(example.ids, example.learn, strict=True) if counts])


def test_alpaca_and_dolly_learn_the_response_and_its_end_only(tmp_path):
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "three"}
    dolly = {"instruction": "Name it.", "context": "", "response": "walk", "category": "qa"}
    path = write(tmp_path / "a.jsonl", [alpaca, dolly, {"prompt": "Q: why\nA:", "completion": " because"}])
    examples = sorted(
        (learnt(example, PLAIN), PLAIN.decode(example.ids)) for example in read_examples(path, PLAIN, max_length=512)
    )
    assert [answer for answer, _ in examples] == [" because</s>", "three</s>", "walk</s>"]
    assert "### Input:\n1 and 2\n\n### Response:\nthree" in examples[1][1]
    assert "further context" in examples[1][1]
    assert "### Input" not in examples[2][1]


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
    (example,) = read_examples(write(tmp_path / "a.jsonl", [record]), PLAIN, max_length=512)
    assert learnt(example, PLAIN) == learnt_text
    assert "None" not in PLAIN.decode(example.ids)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"instruction": "Say.", "output": 5}, "output: 5"),
        ({"instruction": "Say.", "response": "Hi", "context": ["a"]}, r"context: \['a'\]"),
        ({"text": {"en": "a"}}, "text: {'en': 'a'}"),
        ({"messages": "hello"}, "messages: 'hello'"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
            "messages: {.*None}",
        ),
        ({"messages": [{"role": 5, "content": "a"}]}, "messages: {.*5"),
        ({"instruction": "Say.", "output": None}, r"keys instruction, output \(null\)"),
        ({"question": "?"}, "keys question"),
        ([1], r"\[1\]"),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_its_line(record, found, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a line"}, record])
    with pytest.raises(DataError, match=f"line 2.*found {found}"):
        read_examples(path, PLAIN)


def test_a_json_list_reads_like_lines(tmp_path):
    record = {"instruction": "Add.", "input": "", "output": "three"}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert read_examples(str(tmp_path / "a.json"), PLAIN) == read_examples(write(tmp_path / "a.jsonl", [record]), PLAIN)
    assert prompt_and_response(record)[1] == "three"


def test_chat_learns_every_assistant_turn_and_nothing_else(tmp_path):
    turns = [("user", "hello"), ("assistant", "good day"), ("user", "more"), ("assistant", "done")]
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": role, "content": content} for role, content in turns]}])
    (example,) = read_examples(path, CHAT, max_length=512)
    assert learnt(example, CHAT) == "good day</s>done</s>"
    assert CHAT.decode(example.ids) == "".join(f"<s>{role}: {content}</s>" for role, content in turns)


def test_text_counts_whole_and_is_cut_to_length(tmp_path):
    (tmp_path / "a.txt").write_text("every layer once " * 50)
    examples = read_examples(str(tmp_path / "a.txt"), WITH_BOS, max_length=32)
    assert all(len(example.ids) <= 32 and example.ids[0] == 1 and all(example.learn) for example in examples)
    pieces = sorted((list(example.ids[1:]) for example in examples), key=len)
    assert sum(map(len, pieces)) == len(encode(WITH_BOS, "every layer once " * 50))


def test_an_example_whose_response_is_cut_off_is_dropped_and_none_left_is_an_error(tmp_path):
    long = {"instruction": "word " * 100, "output": "never seen"}
    path = write(tmp_path / "a.jsonl", [long])
    with pytest.raises(DataError, match="max_length"):
        read_examples(path, PLAIN, max_length=16)


def test_a_conversation_the_template_refuses_is_one_message(tmp_path):
    strict = tokenizer(chat=True)
    path = write(tmp_path / "a.jsonl", [conversation("q", "a")])
    for template, said in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "Range too big"),
    ):
        strict.chat_template = template
        with pytest.raises(DataError, match=said):
            read_examples(path, strict)


def conversation(*turns: str) -> dict:
    return {
        "messages": [
            {"role": "assistant" if number % 2 else "user", "content": turn} for number, turn in enumerate(turns)
        ]
    }


def test_of_a_hub_set_no_more_rows_are_read_than_samples_are_asked_for(monkeypatch):
    read = []

    def rows(_source, seed):
        for number in range(10_000):
            read.append(number)
            yield {"prompt": f"{seed}: ", "completion": str(number) if number % 2 else ""}

    monkeypatch.setattr(sources, "hub_records", rows)
    silent = tokenizer()
    silent.eos_token = None  # every second row has nothing to learn
    examples = read_examples("org/name", silent, most=10, seed=3)
    assert len(examples) == 10
    assert len(read) == 20
    assert examples == read_examples("org/name", silent, most=10, seed=3)
    read.clear()
    assert len(read_examples("org/name,copying=2", silent, max_length=64, most=9)) == 9
    assert len(read) == 6
    read.clear()
    assert len(read_examples("org/name", silent, most=0.01)) == 50
    assert len(read) == 10_000, "a share is of all"


def test_of_a_file_records_are_drawn_before_they_are_tokenised(tmp_path, monkeypatch):
    texts = [f"{number} walks visit every layer" for number in range(300)]
    path, seen = write(tmp_path / "a.jsonl", [{"text": text} for text in texts]), []
    monkeypatch.setattr(examples_module, "encode", lambda made, text: seen.append(text) or encode(made, text))
    found = [read_examples(path, PLAIN, most=10, seed=seed) for seed in (0, 0, 1)]
    assert [len(each) for each in found] == [10] * 3
    assert len(seen) == 30
    assert found[0] == found[1] != found[2]
    assert max(texts.index(text) for text in seen[:10]) > 100, "not the first of the file"


@pytest.mark.parametrize("others", ["", ",copying"])
@pytest.mark.parametrize("held_out", [1, 2, 3])
def test_all_answers_of_a_conversation_are_held_out_or_none(held_out, others, tmp_path):
    dropping = tokenizer(chat=True)
    dropping.chat_template = THINKING
    chats = [
        conversation(*(f"{part} {chat} {turn}" for turn in range(3) for part in ("q", "<think>x</think>a")))
        for chat in range(12)
    ]
    data = TrainingData(write(tmp_path / "a.jsonl", chats) + others, max_samples=24, held_out=held_out)
    examples = read_examples(data.source, dropping, max_length=128, most=24)
    line = data.held_out_among(examples)
    assert held_out <= line < held_out + 3
    sides = [
        {number for number in range(12) if any(f": q {number} 0" in dropping.decode(each.ids) for each in side)}
        for side in (examples[:line], examples[line:])
    ]
    assert all(sides) or others
    assert not sides[0] & sides[1]


BREAKING = """{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}</s>{% endfor %}\
{% if add_generation_prompt %}<s>assistant\n{% endif %}"""


def test_a_token_across_the_start_of_an_answer_does_not_count_and_the_rest_of_it_does(tmp_path):
    merging = tokenizer(chat=True)
    merging.chat_template = BREAKING
    merging.add_tokens(["\n" * 4])
    path = write(tmp_path / "a.jsonl", [conversation("q", "\n\n\ncode", "more", "\n\n\n\nfour", "last", "done")])
    (example,) = read_examples(path, merging, max_length=512)
    pieces = [merging.decode(token) for token in example.ids]
    assert pieces.count("\n\n\n\n") == 2
    assert learnt(example, merging) == "code</s>\nfour</s>done</s>"


THINKING = """{% for message in messages %}<s>{{ message.role }}: {% if message.role == 'assistant' and not loop.last %}\
{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %}</s>{% endfor %}\
{% if add_generation_prompt %}<s>assistant: {% endif %}"""


def test_a_template_that_drops_what_earlier_turns_thought_gives_a_sample_for_each_answer(tmp_path):
    dropping = tokenizer(chat=True)
    dropping.chat_template = THINKING
    path = write(tmp_path / "a.jsonl", [conversation("one", "<think>x</think>first", "two", "<think>y</think>second")])
    examples = sorted(read_examples(path, dropping, max_length=512), key=lambda example: len(example.ids))
    assert [learnt(example, dropping) for example in examples] == [
        "<think>x</think>first</s>",
        "<think>y</think>second</s>",
    ]
    assert "assistant: first</s>" in dropping.decode(examples[1].ids)


def test_a_template_whose_prompt_changes_once_it_is_answered_is_refused(tmp_path):
    last_only = tokenizer(chat=True)
    last_only.chat_template = "{{ messages[-1].role }}: {{ messages[-1].content }}"
    path = write(tmp_path / "a.jsonl", [conversation("one", "first")])
    with pytest.raises(DataError, match="renders the prompt differently"):
        read_examples(path, last_only)


def test_lines_that_are_no_json_or_no_text_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{broken", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1.*found '{broken'"):
        read_examples(str(path), PLAIN)
    path.write_text('{"text": "\\ud800 abc"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="lone surrogate at character 0"):
        read_examples(str(path), PLAIN)
    path.write_text('{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}\n')
    with pytest.raises(DataError, match="lone surrogate"):
        read_examples(str(path), CHAT)
    path.write_text('{"text": "every layer"}\n', encoding="utf-8-sig")
    assert len(read_examples(str(path), PLAIN)) == 1


@pytest.mark.parametrize("wrong", [{"length": 1}, {"samples": 0}])
def test_windows_without_room_or_number_are_refused(wrong):
    with pytest.raises(DataError, match="at least one window"):
        Tokens.read("pydoc", WITH_BOS, **wrong)
