"""YAML files that a user writes: read safely, checked by a pydantic model, and explained by line and nearest right key."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass

from shortstack.errors import InputError
from shortstack.machine.options import message_of, no_choice

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls a key that a class does not have


class Part(BaseModel):
    """A mapping of the file: keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def given(self) -> dict[str, Any]:
        """The keys that the file gives, with their values: without defaults."""
        return self.model_dump(exclude_unset=True)


def text_of(path: str | Path) -> str:
    """Read a file that a user names."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be read: {reason}") from error


Read = TypeVar("Read")


def parsed(text: str, kind: type[Read], *, where: str) -> Read:
    """Read a mapping as a pydantic model or a class of options. where: the file's name, for messages."""
    with syntax_of(where):
        data = yaml.safe_load(text)
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise InputError(f"{where} {found}; give keys of {', '.join(keys(kind))}")
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise _explained(where, text, kind, error) from error


@contextmanager
def lines_of(where: str, text: str) -> Iterator[None]:
    """Put file and line before an error about one of the file's keys."""
    try:
        yield
    except InputError as error:
        line = line_of(text, error.option) if error.option else None
        raise (error.at(f"{where}, line {line}") if line else error) from error.__cause__


def check_folder(folder: Path) -> None:
    """Refuse a folder with a file that is not YAML; its keys and tags are not checked."""
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        text = text_of(path)
        with syntax_of(str(path)):
            yaml.compose(text, Loader=yaml.SafeLoader)


@contextmanager
def syntax_of(where: str) -> Iterator[None]:
    """Raise errors of the parser as one that names the file and the line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line} is not YAML: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError) as error:  # the latter where it is nested too deeply
        raise InputError(f"{where} is not YAML: {error}") from error


def line_of(text: str, key: str) -> int | None:
    """Return the first line, counted from 1, with a key or value of this text; None where the file has none."""
    tokens = (token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken))
    return next((token.start_mark.line + 1 for token in tokens if token.value == key), None)


def keys(kind: Any) -> list[str]:
    """List the keys of a mapping, as the file spells them."""
    return [field.alias or name for name, field in _fields(kind).items()]


def _fields(kind: Any) -> Any:
    """Return the fields of a pydantic model or dataclass by name."""
    return kind.model_fields if issubclass(kind, BaseModel) else kind.__pydantic_fields__


def _explained(where: str, text: str, kind: Any, error: ValidationError) -> InputError:
    """Return the error to show. Of a value that may be of several kinds, take the errors of the kind that fits it best."""
    details = error.errors(include_url=False)
    first = max(details, key=lambda detail: (detail["type"] in UNKNOWN, len(detail["loc"])))
    steps = [*_steps(text, first["loc"])] or [(str(first["loc"][-1]), 1)]  # pydantic names kinds, too
    name, place = ".".join(step for step, _ in steps), f"{where}, line {steps[-1][1]}"
    if first["type"] == "missing":
        return InputError(f"{place}: the key {name} is missing")
    if first["type"] in UNKNOWN:
        return InputError(f"{place}: there is no key {name}; {no_choice(steps[-1][0], _known(kind))}")
    return InputError(f"{place}: {name}: {message_of(first)}")


def _known(kind: Any) -> list[str]:
    """List the keys of a class of options and of those inside it."""
    inner = (each for field in _fields(kind).values() for each in _models(field.annotation))
    return [*keys(kind), *(key for each in inner for key in _known(each))]


def _models(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_pydantic_dataclass(annotation)):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _steps(text: str, path: Sequence[int | str]) -> Iterator[tuple[str, int]]:
    """Yield the parts of a path that stand in the file, each with its line."""
    node: Any = yaml.compose(text)
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            pairs = [(node.value[part], node.value[part])]
        else:
            pairs = []
        if pairs:
            yield str(part), pairs[0][0].start_mark.line + 1
            node = pairs[0][1]
