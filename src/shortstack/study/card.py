"""The model card of a shortened model: README.md, filled from a template that comes with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from shortstack.machine.formats import number, show_layers, size


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown with the metadata that hubs read. facts: what the template card.md.j2 names; nothing may lack.

    What comes from outside, such as a model's name, is escaped: it is never markup.
    """
    environment = Environment(
        loader=PackageLoader("shortstack.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"layers": show_layers, "number": number, "size": size, "thousands": "{:,}".format}
    return environment.get_template("card.md.j2").render(facts)
