"""The size of a model's table of positions, and the refusal of texts that are longer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from shortstack.architecture.anatomy import Anatomy
from shortstack.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HasPositions(Protocol):
    """A checkpoint, or a model in memory."""

    @property
    def positions(self) -> int | None: ...

    @property
    def anatomy(self) -> Anatomy: ...


def learned_positions(model: PreTrainedModel, anatomy: Anatomy) -> int | None:
    """Return how many positions a model with a table of them has; None where they are computed."""
    from torch import nn

    parents = {path.rpartition(".")[0] for path in (anatomy.layers_path, anatomy.embedding)}
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[0] in parents
        and re.search(r"wpe|position", name.rpartition(".")[2])
    ]
    stated = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min([*tables, stated or max(tables)]) if tables else None


def check_positions(
    model: HasPositions, tokens: int, option: str, *, fix: str = "ask for fewer tokens", note: str = "", where: str = ""
) -> None:
    """Refuse a text for which a model has too few positions; tokens: those it reads and those it generates after them."""
    if model.positions and tokens > model.positions:
        raise InputError(
            f"{tokens}{note}",
            expected=f"at most {model.positions} tokens, for which {model.anatomy.architecture} has positions",
            fix=fix,
            option=option,
            where=where,
        )
