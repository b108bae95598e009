"""What a study's file refers to, models, texts and names of the environment, and the command that does what a step does."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.data import mixture
from shortstack.errors import InputError
from shortstack.evaluation import Tasks
from shortstack.healing import TrainingData
from shortstack.machine.formats import option_words, show_share
from shortstack.machine.options import options_of


def open_model(name: str, **options: Any) -> Checkpoint:
    """A checkpoint by a study's word for it: org/name@revision is a hub model at a branch, tag or commit."""
    model, revision = with_revision(name)
    return Checkpoint.open(model, revision=revision, **options)


def with_revision(name: str) -> tuple[str, str | None]:
    """A study's word for a model as its name and the revision that it asks for; a path that is there asks for none.

    >>> with_revision("org/name@v2"), with_revision("demo")
    (('org/name', 'v2'), ('demo', None))
    """
    model, _, revision = (name, "", "") if os.path.exists(name) else name.partition("@")
    return model, revision or None


def check_text(source: str) -> None:
    """Refuse a text that a step could not read: several with commas, files with all their records; the hub is not asked."""
    for each in mixture.check_sources(str(expanded(source))):
        each.read()


def text_digest(source: str) -> str:
    """Digest of a text as a study's file names it, or of a folder of files."""
    return mixture.text_digest(str(expanded(source)))


def expanded(value: Any) -> Any:
    """The same data with $NAME and ${NAME} in its strings replaced by the environment's."""
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    unset = re.search(r"\$\{?([A-Za-z_]\w*)", text)
    if unset:
        none, fix = f"no {unset[1]} in the environment", f"export {unset[1]}=..."
        raise InputError(none, expected="names that the environment has", fix=fix, where=value)
    return text


SHARED = {name for each in (Tasks, TrainingData) for name, _, known in options_of(each) if known.shares}


def command_line(words: Sequence[str]) -> str:
    """A shortstack command as a shell reads it."""
    return " ".join(["shortstack", *map(quoted, words)])


def quoted(word: str) -> str:
    """A word for a shell; names of the environment in it stand for their values, as in a study's file.

    >>> quoted("$DATA/my text.jsonl"), quoted("my text"), quoted("plain")
    ('"$DATA/my text.jsonl"', "'my text'", 'plain')
    """
    if "$" not in word:
        return shlex.quote(word)
    return '"' + re.sub(r'[\\"`]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})', lambda special: f"\\{special[0]}", word) + '"'


def model_words(name: str) -> list[str]:
    """A model as the command line names it: a hub model's revision is an option.

    >>> model_words("org/name@v2")
    ['org/name', '--revision', 'v2']
    """
    model, revision = with_revision(name)
    return [model, *option_words({"revision": revision})]


def changed_words(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Those of the values that are options and not at their default, as the command line spells them.

    >>> changed_words({"metric": "bi", "drop": "25%", "step": None}, {"metric": None, "drop": "25%", "step": None})
    ['--metric', 'bi']
    >>> changed_words({"limit": 1.0, "learning_rate": 1.0}, {"limit": None, "learning_rate": None})
    ['--limit', '100%', '--learning-rate', '1.0']
    """
    changed = {name: values[name] for name in defaults if name in values and values[name] != defaults[name]}
    shares = {name: show_share(value) for name, value in changed.items() if name in SHARED and isinstance(value, float)}
    return option_words({**changed, **shares})
