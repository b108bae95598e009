"""Multiple choice against one forward of the whole model for each choice."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import shortstack.data.questions
import shortstack.decoder.batching
import shortstack.decoder.decoder
from shortstack.checkpoint import Checkpoint
from shortstack.data import Question, Tokens, read_questions
from shortstack.data.questions import tokenize_questions
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.likelihoods import answers
from shortstack.errors import DataError
from shortstack.scoring import depth_curve
from shortstack.scoring.depths import tail_cuts
from zoo import pass_over, tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))


class Letters:
    """A tokenizer: a token for each character, and for BOS what its class says."""

    bos_token_id = 1

    def __init__(self, bos: bool = True) -> None:
        self.bos = bos

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [3 + ord(letter) % 80 for letter in text]
        return type("Encoding", (), {"input_ids": [1, *ids] if add_special_tokens and self.bos else ids})


QUESTIONS = [
    Question("What is it?", (" a cat", " a dog", " rain"), 1),
    Question("One ", ("two", "three and four"), 0),
    Question("", ("yes", "no"), 1),
    Question("A much longer context than the others have", (" x", " y", " z", " w"), 3),
]


@torch.no_grad()
def naively(directory, tokenizer, removed) -> list[bool]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    pass_over(model, "model.layers" if hasattr(model, "model") else "transformer.h", removed)
    right = []
    for question in QUESTIONS:
        found = []
        for choice in question.choices:
            context = tokenizer(question.context.rstrip()).input_ids
            ids = torch.tensor([tokenizer(question.context + choice).input_ids])
            logits = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
            found.append(sum(float(logits[at - 1, ids[0, at]]) for at in range(len(context), ids.shape[1])))
        right.append(max(range(len(found)), key=found.__getitem__) == question.answer)
    return right


@pytest.mark.parametrize(("model_type", "batch"), [("gpt2", 2048), ("gemma3_text", 24), ("mixtral", 2048)])
def test_answers_are_those_of_one_forward_for_each_choice(model_type, batch, monkeypatch):
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", batch)
    monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", 1 if batch == 24 else 2 << 30)
    checkpoint = Checkpoint.open(tiny(model_type))
    sets = [UNPRUNED, frozenset({3}), frozenset({2, 5}), frozenset({6, 7})]
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = answers(decoder, tokenize_questions(QUESTIONS, Letters()), sets)
    for skipped in sets:
        expected = naively(checkpoint.directory, Letters(), sorted(skipped))
        assert list(found[skipped].correct) == expected
        share = sum(expected) / 4
        assert found[skipped].value == share
        assert found[skipped].stderr == pytest.approx(math.sqrt(share * (1 - share) / 3))


def test_a_sweep_answers_at_every_depth(tmp_path, monkeypatch):
    checkpoint, task = Checkpoint.open(tiny("llama")), tmp_path / "task.jsonl"
    lines = [{"context": each.context, "choices": each.choices, "answer": each.answer} for each in QUESTIONS]
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _self: Letters())
    found = depth_curve(checkpoint, Tokens(IDS, "made", False, 0), task=task)
    for depth, tail in zip(found.depths, tail_cuts(8), strict=True):
        assert depth.accuracy == sum(naively(checkpoint.directory, Letters(), sorted(tail))) / 4
    assert found.task["questions"] == 4
    assert depth_curve(checkpoint, Tokens(IDS, "made", False, 0)).depths[0].accuracy is None


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"context": "a"}',
        '{"context": "a", "choices": ["b", "c"], "answer": 2}',
        '{"context": "a", "choices": ["b", "c"], "answer": true}',
        "nothing",
    ],
)
def test_a_line_that_is_no_question_is_named(line, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text('{"context": "a", "choices": [" b", " c"], "answer": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=r"task\.jsonl, line 2"):
        read_questions(task)


@pytest.mark.parametrize(("context", "choice"), [("", "yes"), ("so", " ")])
def test_what_has_no_token_before_or_in_the_choice_is_refused(context, choice):
    class Trimming(Letters):
        def __call__(self, text, **options):
            return super().__call__(text.rstrip(), **options)

    with pytest.raises(DataError, match="before the choice"):
        tokenize_questions([Question(context, (choice, "no"), 0)], Trimming(bos=False))
