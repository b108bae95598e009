"""Which layers of a pruned model train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortstack.checkpoint.record import near_cuts
from shortstack.errors import InputError, parameter
from shortstack.planning.layer_sets import parse_layers

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint


@dataclass(frozen=True)
class Places:
    """Layers by number, near cuts, or last.

    layers: these, as the pruned model numbers them, such as "10-13,21"; near_cut: so many on both sides of each cut; last:
    so many at the end. None of them: what the method does by itself.
    """

    last: int | None = None
    layers: str | None = None
    near_cut: int | None = None

    def check(self) -> None:
        """Say what is wrong whatever the model.

        Raises:
            InputError: two ways to name layers, numbers out of range, or names that are none.
        """
        given = [parameter(name) for name in ("layers", "near_cut", "last") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(
                given[0], expected=f"{given[0]} alone", found=f"{given[1]} beside it", fix="give one of them"
            )
        for name, value, least in ((parameter("last"), self.last, 0), (parameter("near_cut"), self.near_cut, 1)):
            if value is not None and value < least:
                raise InputError(
                    name, expected=f"at least {least}", found=str(value), fix=f"write {name} {max(least, 1)}"
                )
        if self.layers is not None:
            parse_layers(self.layers)

    def found(self, checkpoint: Checkpoint, default: int) -> tuple[int, ...]:
        """The layers, in order; the last `default` of them where nothing is said.

        Raises:
            InputError: more layers than there are, two ways to name them, or no cut to be near to.
        """
        count = checkpoint.anatomy.layers
        self.check()
        if self.layers is not None:
            return self._named(count)
        last = min(default, count) if self.last is None else self.last
        for name, value, least in ((parameter("last"), last, 0), (parameter("near_cut"), self.near_cut, 1)):
            if value is not None and value > count:
                expected = f"between {least} and the model's {count} layers"
                raise InputError(name, expected=expected, found=str(value), fix="train fewer layers")
        if self.near_cut is not None:
            return near_cuts(checkpoint, self.near_cut)
        return tuple(range(count - last, count))

    def counted(self, count: int, default: int) -> tuple[int, int]:
        """How many layers train and how many run for it, of a model of `count` layers whose cuts are not known yet.

        One cut is counted for near_cut, and all layers run. Otherwise as `found`.
        """
        if self.layers is not None:
            named = self._named(count)
            return len(named), count - named[0]
        if self.near_cut is not None:
            return min(2 * self.near_cut, count), count
        last = min(default if self.last is None else self.last, count)
        return last, last

    def _named(self, count: int) -> tuple[int, ...]:
        named = tuple(sorted(set(parse_layers(self.layers or ""))))
        if named[-1] >= count:
            raise InputError(
                parameter("layers"),
                expected=f"layers 0 to {count - 1} of the pruned model",
                found=str(named[-1]),
                fix="name layers as the pruned model numbers them",
            )
        return named
