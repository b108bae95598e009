"""The shortstack command that does what a step of a study does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortstack.evaluation import Tasks
from shortstack.healing import TrainingData
from shortstack.machine.formats import option_words, show_share
from shortstack.machine.options import options_of
from shortstack.study.references import with_revision

SHARED = {name for each in (Tasks, TrainingData) for name, _, known in options_of(each) if known.shares}


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
