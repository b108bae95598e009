"""A Modelfile: its Go template, filled in by a reader of our own here, gives what the tokenizer's chat template gives."""

from __future__ import annotations

import re

import pytest

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError
from shortstack.exporting import modelfile
from shortstack.exporting.chat_template import Turns
from shortstack.exporting.ollama import go_template
from zoo import speaking
from zoo import tokenizer as make_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_CHATML = CHATML.partition("{% if loop")[0] + CHATML.partition("{% endif %}")[2]
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
BRACES = (
    "{% for message in messages %}{{ '{{' }}{{ message['role'] }}{{ '}}' }}{{ message['content'] }};{% endfor %}"
    "{{ '!' if add_generation_prompt }}"
)
INST = (  # the system turn stands in the user's, which ends with the answer
    "{% set told = messages[0]['content'] + ' / ' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ told if loop.index < 3 }}{{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TALKS = [
    [("user", "Hi")],
    [("user", "Hi"), ("assistant", "Yes?"), ("user", "Two\nlines {{ and }} more")],
    [("system", "Be short"), ("user", "Hi")],
    [("system", "Be short"), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on")],
]


def filled(template, talk, system):
    """What Ollama makes of a template of the few forms that are written here."""
    told = talk if talk[0][0] == "system" or system is None else [("system", system), *talk]
    begin, loop, answer = re.fullmatch(
        r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()
    found = re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop, re.DOTALL)
    cases = dict(found)
    text = begin + "".join(
        cases[role].replace("{{ .Content }}", "\0").replace('{{ "{{" }}', "{{").replace("\0", content)
        for role, content in told
    )
    return (text + answer).replace('{{ "{{" }}', "{{")


def with_template(template, *, bos=False):
    made = make_tokenizer(bos=bos)
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [CHATML, PLAIN_CHATML, LLAMA3, GEMMA, BRACES])
def test_the_template_of_go_gives_what_the_tokenizer_s_gives(template):
    tokenizer = with_template(template)
    turns = Turns.of(tokenizer)
    assert (turns.system is None) == (template is GEMMA)
    for talk in TALKS:
        if talk[0][0] == "system" and turns.system is None:
            continue
        messages = [{"role": role, "content": content} for role, content in talk]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert filled(go_template(turns, begin=turns.begin), talk, turns.usual) == expected


@pytest.mark.parametrize(
    "template", [INST, "{{ messages | length }}", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", None]
)
def test_turns_that_depend_on_each_other_are_refused(template):
    with pytest.raises(InputError, match="chat template: expected turns that do not depend on each other"):
        Turns.of(with_template(template))


def test_a_usual_system_turn_and_the_ends_of_answers_are_told(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    tokenizer = with_template(CHATML)
    tokenizer.save_pretrained(checkpoint.directory)
    told = modelfile(checkpoint, "somewhere/small.gguf")
    assert told.startswith('FROM ./small.gguf\nTEMPLATE """{{ range .Messages }}')
    assert 'SYSTEM """Be helpful."""' in told
    assert 'PARAMETER stop "<|im_end|>"' in told
    assert 'PARAMETER stop "</s>"' in told


@pytest.mark.parametrize("bos", [True, False])
def test_the_first_token_is_not_said_twice(bos, tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    with_template(LLAMA3, bos=bos).save_pretrained(checkpoint.directory)
    assert ('"""<s>' in modelfile(checkpoint, "small.gguf")) is not bos


def test_a_model_that_does_not_chat_completes(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model", chat=False))
    assert modelfile(checkpoint, "small.gguf") == 'FROM ./small.gguf\nTEMPLATE """{{ .Prompt }}"""\n'


def test_marks_that_end_a_text_are_refused(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    with_template(CHATML.replace("Be helpful.", '"""')).save_pretrained(checkpoint.directory)
    with pytest.raises(InputError, match="Modelfile by hand"):
        modelfile(checkpoint, "small.gguf")
