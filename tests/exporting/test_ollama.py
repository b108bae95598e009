"""The Modelfile that Ollama is given."""

from __future__ import annotations

import pytest

from shortstack.errors import CheckpointError
from shortstack.exporting import modelfile
from zoo import speaking
from zoo import tokenizer as make_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


def ending_with(token, folder):
    """A model whose texts end so."""
    model, tokenizer = speaking(folder), make_tokenizer()
    tokenizer.eos_token = token
    tokenizer.save_pretrained(model)
    return model


@pytest.mark.parametrize(("end", "stop"), [("</s>", 'PARAMETER stop "</s>"\n'), (None, "")])
def test_it_names_the_file_and_where_an_answer_ends(end, stop, tmp_path):
    assert modelfile(ending_with(end, tmp_path / "model"), "somewhere/small.gguf") == f"FROM ./small.gguf\n{stop}"


def test_an_end_that_would_be_another_line_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="Modelfile by hand"):
        modelfile(ending_with('x\nADAPTER "/etc/passwd', tmp_path / "model"), "small.gguf")
