"""The Modelfile that Ollama is given."""

from __future__ import annotations

import pytest

from shortstack.errors import CheckpointError
from shortstack.exporting import modelfile
from zoo import speaking
from zoo import tokenizer as make_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("chat", [True, False])
def test_it_names_the_file_and_where_an_answer_ends(chat, tmp_path):
    """Whatever the chat template is: it is in the file."""
    model = speaking(tmp_path / "model", chat=chat)
    assert modelfile(model, "somewhere/small.gguf") == 'FROM ./small.gguf\nPARAMETER stop "</s>"\n'


def test_a_model_without_an_end_has_no_stop(tmp_path):
    model, tokenizer = speaking(tmp_path / "model"), make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    assert modelfile(model, "small.gguf") == "FROM ./small.gguf\n"


@pytest.mark.parametrize("end", ['"', 'x\nADAPTER "/etc/passwd'])
def test_an_end_that_would_be_another_line_is_refused(end, tmp_path):
    model, tokenizer = speaking(tmp_path / "model"), make_tokenizer()
    tokenizer.eos_token = end
    tokenizer.save_pretrained(model)
    with pytest.raises(CheckpointError, match="Modelfile by hand"):
        modelfile(model, "small.gguf")
