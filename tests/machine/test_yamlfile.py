"""YAML files as classes of options: wrong ones are refused with file, line and key."""

import re

import pytest
from pydantic import Field

from shortstack.errors import InputError
from shortstack.machine.options import Amount, given, options
from shortstack.machine.yamlfile import Part, line_of, lines_of, parsed


@options
class Inner:
    steps: int = Field(1, ge=1, description="A count.")
    many: Amount | None = None

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise InputError("13 steps cannot be taken", option="steps")


@options
class Options:
    title: str = ""
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()


class Model(Part):
    name: str
    inner: Inner = Inner()


def test_values_are_read_and_given_ones_known():
    read = parsed("title: a\ninner: {many: 10%}\n", Options, where="a.yaml")
    assert (read.title, read.inner.many, given(read.inner)) == ("a", 0.1, {"many": 0.1})
    assert parsed("name: b\n", Model, where="a.yaml").given == {"name": "b"}


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("", Options, "a.yaml"),
        ("- 1\n", Options, "a.yaml"),
        ("title: a\nb: [c\n", Options, "line 3"),
        ("title: a\nb: 1\n", Options, "line 2: .*b"),
        ("title: a\ninner:\n  stepz: 1\n", Options, "line 3: .*did you mean steps"),
        ("title: a\ninner: {steps: 0}\n", Options, "line 2: inner.steps: 0"),
        ("rows:\n- {steps: 1}\n- {steps: x}\n", Options, "line 3: rows.1.steps: 'x'"),
        ("inner:\n  many: 0%\n", Options, "line 2: inner.many"),
        ("inner: {}\n", Model, "name"),
        ("name: a\nother: b\n", Model, "line 2: .*other"),
        ("[" * 100_000, Options, "a.yaml"),
    ],
)
def test_wrong_file_is_refused_with_line_and_key(text, kind, place):
    with pytest.raises(InputError) as refused:
        parsed(text, kind, where="a.yaml")
    assert re.search(place, str(refused.value)), str(refused.value)


def test_error_of_a_class_gets_its_line():
    text = "title: a\ninner:\n  steps: 13\n"
    assert line_of(text, "steps") == 3
    with pytest.raises(InputError, match=r"^a\.yaml, line 3: steps: 13"), lines_of("a.yaml", text):
        parsed(text, Options, where="a.yaml")
