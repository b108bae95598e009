"""How a model is pruned and healed in turns (Lu et al., 4.3): the paper's schedule 1:1:8 is drop 8, step 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from shortstack.data import CalibrationText
from shortstack.data.mixture import MIX
from shortstack.errors import InputError
from shortstack.machine.options import check_options, option, options_of
from shortstack.planning.layer_sets import check_choice, check_pace, parse_drop
from shortstack.scoring.metrics import metric_named


@dataclass(frozen=True)
class IterativeSchedule:
    """Pruning and healing in turns.

    drop: in all. metric, text, samples, length: how layers are chosen each time. seed: of the choice; None: the schedule's.
    """

    drop: str = option(MISSING, help="With step: how much to remove in all, 25% or a count.")
    step: int = option(
        MISSING, help="Prune this many layers and heal, in turns, starting from the unpruned model.", minimum=1
    )
    metric: str = option("ppl", help="With step: how layers are chosen. Default: ppl.")
    text: str = option(MIX, help=f"With step: calibration text. Default: {MIX}.")
    samples: int | str = option(10, help="With step: calibration windows per text, or all. Default: 10.")
    length: int = option(128, help="With step: tokens per calibration window. Default: 128.", minimum=4)
    seed: int | None = None

    def __post_init__(self) -> None:
        check_options(self)
        check_choice(self.drop, None)
        metric_named(self.metric)
        self.calibration  # noqa: B018  refuses what it cannot be

    @classmethod
    def of_options(cls, values: Mapping[str, Any]) -> IterativeSchedule | None:
        """Take option values by name, of which None are not given; return None where there are to be no turns."""
        given = {name: values[name] for name, _, _ in options_of(cls) if values.get(name) is not None}
        if not given:
            return None
        if not {"step", "drop"} <= given.keys():
            raise InputError(
                "one without the other",
                expected="step and drop together, and metric, text, samples and length only beside them",
                fix="give both, such as drop 25% and step 1, or prune first",
                option="step",
            )
        return cls(**given)

    @property
    def calibration(self) -> CalibrationText:
        return CalibrationText(self.text, self.samples, self.length)

    def sizes(self, layers: int) -> list[int]:
        """Return how many layers go in each turn.

        >>> IterativeSchedule("8", 3).sizes(32)
        [3, 3, 2]
        """
        total = parse_drop(self.drop, layers)
        check_pace(self.step, total)
        return [min(self.step, total - gone) for gone in range(0, total, self.step)]
