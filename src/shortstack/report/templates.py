"""The report's templates: the page and its charts."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """An environment in which everything that is put into a template is escaped, and nothing may be missing."""
    return Environment(
        loader=PackageLoader("shortstack.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
