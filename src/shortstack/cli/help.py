"""How the help of a verb is written: usage, what it does and an example, then its options group by group."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel

NAMES = 26  # characters of the names of options, where they stand beside what is said of them


@dataclass(frozen=True)
class Help:
    """The formatter of cyclopts' help; short: options are named, not explained."""

    short: bool

    def render_usage(self, _console: Any, _options: Any, usage: Any) -> None:
        _write([f"Usage: {usage}".strip()])

    def render_description(self, _console: Any, _options: Any, description: Any) -> None:
        paragraphs = description.primary_renderable.plain.strip().split("\n\n")
        _write("\n\n".join("\n".join(_filled(" ".join(paragraph.split()))) for paragraph in paragraphs).splitlines())

    def __call__(self, _console: Any, _options: Any, panel: HelpPanel) -> None:
        if self.short and panel.entries:
            _write(_filled(f"{panel.title}: {', '.join(map(_name, panel.entries))}", "  "))
        elif panel.entries:
            _write([f"{panel.title}:", *(line for entry in panel.entries for line in _explained(entry))])


def _name(entry: HelpEntry) -> str:
    return entry.positional_label or entry.positive_names[0]


def _explained(entry: HelpEntry) -> list[str]:
    """Return the lines of an option: its names and what it takes, what it does, its default."""
    names = [*entry.positive_shorts, *entry.positive_names] if not entry.positional_label else [entry.positional_label]
    if entry.default != "False":
        names += entry.negative_names
    left = f"  {', '.join(names)}" + (f" {entry.metavar}" if entry.metavar and not entry.positional_label else "")
    notes = [f"[default: {entry.default}]"] if entry.default not in (None, "False") else []
    notes += ["[required]"] if entry.required and not entry.positional_label else []
    lines = _filled(" ".join([entry.description.primary_renderable.plain, *notes]), " " * NAMES)
    lines[0] = lines[0] if len(left) < NAMES - 1 else " " * NAMES + lines[0]
    return [left.ljust(NAMES) + lines[0], *lines[1:]] if len(left) < NAMES - 1 else [left, *lines]


def _filled(text: str, indent: str = "") -> list[str]:
    """Return text in lines as wide as the terminal, all but the first indented."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(text, max(width - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    return [line if not number else indent + line for number, line in enumerate(lines)] or [""]


def _write(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, ""]))
