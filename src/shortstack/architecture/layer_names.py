"""How a checkpoint's files name the tensors of its layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.architecture.anatomy import Anatomy
from shortstack.errors import CheckpointError

EXTRA_HEAD = re.compile(r"(^|\.)mtp\w*\.")
OTHER_TOWER = re.compile(r"visi|image|audio|speech")  # in the names of layers that are not the text's


@dataclass(frozen=True)
class LayerNames:
    """Tensors of layers are named `<path>.<number>.<rest>`, numbers below `layers`; those above are extra heads (MTP).

    >>> LayerNames("model.layers", 30).layer_of("model.layers.7.mlp.up_proj.weight")
    7
    """

    path: str
    layers: int

    @classmethod
    def stored(cls, anatomy: Anatomy, names: Collection[str], directory: Path) -> LayerNames:
        """Take, of the paths that are numbered 0 to N-1, the one most like where the model has its layers.

        Files may lack the model's own prefix (gpt2: h.0), order it otherwise (gemma3: language_model.model.layers.0), or
        have names of their own (exaone: transformer.h.0).
        """
        numbered = numbered_paths(names)
        complete = [path for path, numbers in numbered.items() if numbers.issuperset(range(anatomy.layers))]
        own = anatomy.layers_path.split(".")

        def likeness(path: str) -> tuple[bool, int, bool, int]:
            words = path.split(".")
            return words[-1] == own[-1], len(set(own) & set(words)), not OTHER_TOWER.search(path), -len(words)

        best = [path for path in complete if likeness(path) == max(map(likeness, complete))]
        if len(best) == 1:
            return cls(best[0], anatomy.layers)
        seen = ", ".join(f"{len(numbers)} of {path}" for path, numbers in numbered.items()) or "no layer numbers"
        wanted = f"tensors of {anatomy.layer(0)} to {anatomy.layer(anatomy.layers - 1)}"
        raise CheckpointError(
            f"{directory} has {seen} in place of {wanted}; find the config that belongs to these weights"
        )

    @classmethod
    def seen(cls, names: Collection[str], config: Mapping[str, Any]) -> LayerNames | None:
        """Infer the layers' path and number from tensor names and num_hidden_layers; None if several paths are numbered.

        A guess to begin work with: which path is the layers' is known from the model's structure alone, and that takes
        seconds of imports.

        >>> LayerNames.seen(["embed.weight", "layers.0.up.weight", "layers.1.up.weight"], {"num_hidden_layers": 2})
        LayerNames(path='layers', layers=2)
        """
        numbered = numbered_paths(names)
        if len(numbered) != 1:
            return None
        ((path, numbers),) = numbered.items()
        layers = config.get("num_hidden_layers")
        return cls(path, len(numbers)) if layers == len(numbers) and numbers == set(range(layers)) else None

    def layer_of(self, name: str) -> int | None:
        """Return the number in a stored tensor's name; None outside the layers."""
        match = re.match(rf"{re.escape(self.path)}\.(\d+)\.", name)
        return int(match[1]) if match else None

    def renumbered(self, name: str, layer: int) -> str:
        """Return the name of a layer's stored tensor with the number of another layer."""
        rest = name.removeprefix(f"{self.path}.").partition(".")[2]
        return f"{self.path}.{layer}.{rest}"

    def is_extra_head(self, name: str) -> bool:
        """Say whether a stored tensor is of a multi-token prediction head: past the last layer, or named `mtp...`."""
        return (self.layer_of(name) or 0) >= self.layers or bool(EXTRA_HEAD.search(name))


def numbered_paths(names: Collection[str]) -> dict[str, set[int]]:
    """Collect by path the numbers that follow it in names, of the first number of each name.

    >>> numbered_paths(["h.0.w", "h.1.experts.0.w", "norm.w"])
    {'h': {0, 1}}
    """
    numbered: dict[str, set[int]] = {}
    for match in (re.match(r"(.+?)\.(\d+)\.", name) for name in names):
        if match:
            numbered.setdefault(match[1], set()).add(int(match[2]))
    return numbered
