"""What a study would take: its steps once they share work, and about how much time, disk and memory. Nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shortstack.costing import Costs, Size, added
from shortstack.errors import InputError
from shortstack.graph import WRITES_WEIGHTS, Contents, Graph, Step, foreseen, sources
from shortstack.running import text_digest
from shortstack.steps import open_model
from shortstack.study import Study, expanded
from shortstack.trials import Trial

# Until a new process has imported torch and transformers: measured, one thread of an idle AMD EPYC, warm files.
START_SECONDS = 8.0


@dataclass(frozen=True)
class Estimate:
    """asked: steps of all trials, by kind; steps: at most so many are run, since trials share them.

    seconds: by kind, of one worker. start_seconds: until a worker is there. disk_bytes: weights at most, all kept;
    least_disk_bytes: with --keep none. unknown: what no number could be found for, and why; numbers that depend on it are
    None.
    """

    trials: int
    asked: Mapping[str, int]
    steps: Mapping[str, int]
    seconds: Mapping[str, float | None]
    start_seconds: float
    disk_bytes: int | None
    least_disk_bytes: int | None
    memory_bytes: int | None
    unknown: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float | None:
        """Of one worker, from nothing to the end."""
        total: float | None = added([*self.seconds.values(), self.start_seconds])
        return total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(study: Study) -> Estimate:
    """What run_study() would do, without doing it."""
    unknown: dict[str, None] = {}
    names = dict.fromkeys(trial.model for trial in study.trials)
    sizes = {name: _sized(name, study, unknown) for name in names}
    models = {name: Contents(name, name, size.layers if size else None) for name, size in sizes.items()}
    graph = Graph(study, models, {source: _digest(source, unknown) for source in sources(study)})
    costs = Costs(study, sizes, unknown)
    asked: Counter[str] = Counter()
    steps: dict[str, tuple[Step, Trial]] = {}
    for trial in study.trials:
        for step in graph.steps(trial, foreseen).values():
            asked[step.kind] += 1
            steps.setdefault(step.key, (step, trial))
    kinds = dict(sorted(Counter(step.kind for step, _ in steps.values()).items()))
    each = [(step.kind, costs.of(step, trial)) for step, trial in steps.values()]
    written = [cost.disk for kind, cost in each if kind in WRITES_WEIGHTS]
    return Estimate(
        len(study.trials),
        {kind: asked[kind] for kind in kinds},
        kinds,
        {kind: added(cost.seconds for of, cost in each if of == kind) for kind in kinds},
        START_SECONDS,
        added(written),
        None if None in written else 2 * max((size for size in written if size is not None), default=0),
        None if any(cost.memory is None for _, cost in each) else max(cost.memory or 0 for _, cost in each),
        tuple(unknown),
    )


def _sized(name: str, study: Study, unknown: dict[str, None]) -> Size | None:
    try:
        checkpoint = open_model(expanded(name), download=False)
    except InputError as error:
        unknown[f"model {name}: {error.found}"] = None
        return None
    return Size.measured(checkpoint, dtype=study.compute.dtype, device=study.compute.device)


def _digest(source: str, unknown: dict[str, None]) -> str:
    try:
        return text_digest(source)
    except InputError as error:
        unknown[f"text {source}: {error.found}"] = None
        return source
