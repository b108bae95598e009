"""What a study would take: time, disk, memory; nothing of it is run. What cannot be known is None."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shortstack.errors import InputError
from shortstack.study.graph import Graph, foreseen, sources
from shortstack.study.grid import Study
from shortstack.study.references import expanded, open_model, text_digest
from shortstack.study.sizes import ModelSize, TextSizes
from shortstack.study.step_cost import Cost, added
from shortstack.study.steps import Contents, Step
from shortstack.study.trial import Trial

# Until a new process has imported what steps call: 7.1 s of user and 0.8 s of system time on an AMD EPYC, 2026-11-26.
START_SECONDS = 8.0


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    asked: steps of all trials, by kind; steps: at most so many are run, since trials share them.
    seconds: by kind, of one worker. start_seconds: until a worker is there. disk_bytes: weights at most, all kept;
    least_disk_bytes: none kept. cache_bytes: of what healing keeps to use it again. read_bytes: of weights, by all steps.
    unknown: what no number could be found for, and why; numbers that depend on it are None.
    """

    trials: int
    asked: Mapping[str, int]
    steps: Mapping[str, int]
    seconds: Mapping[str, float | None]
    start_seconds: float
    disk_bytes: int | None
    least_disk_bytes: int | None
    memory_bytes: int | None
    cache_bytes: int | None
    read_bytes: int | None
    unknown: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float | None:
        """Seconds of one worker, from nothing to the end."""
        total: float | None = added([*self.seconds.values(), self.start_seconds])
        return total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(study: Study, known: Mapping[str, ModelSize] | None = None, texts: TextSizes | None = None) -> Estimate:
    """What run_study() would do, without doing it. known: models by name that are measured already; texts: likewise."""
    texts = texts or TextSizes({})
    unknown = texts.unknown
    names = dict.fromkeys(trial.model for trial in study.trials)
    sizes = {name: (known or {}).get(name) or _sized(name, study, unknown) for name in names}
    models = {name: Contents(name, name, size.layers if size else None) for name, size in sizes.items()}
    graph = Graph(study, models, {source: _digest(source, unknown) for source in sources(study)})
    asked, steps = Counter[str](), dict[str, tuple[Step, Trial]]()
    for trial in study.trials:
        for step in graph.steps(trial, foreseen).values():
            asked[step.kind] += 1
            steps.setdefault(step.key, (step, trial))
    costs: dict[str, list[Cost]] = defaultdict(list)
    written = []
    for step, trial in steps.values():
        size = sizes[trial.model]
        cost = step.cost(trial, size, texts) if size else Cost(disk=None, cache=None, read=None)
        costs[step.kind].append(cost)
        written += [cost.disk] if step.writes_weights else []
    memory = [cost.memory for each in costs.values() for cost in each]
    return Estimate(
        len(study.trials),
        {kind: asked[kind] for kind in sorted(costs)},
        {kind: len(costs[kind]) for kind in sorted(costs)},
        {kind: added(cost.seconds for cost in costs[kind]) for kind in sorted(costs)},
        START_SECONDS,
        disk_bytes=added(written),
        least_disk_bytes=None if None in written else sum(sorted(filter(None, written))[-2:]),
        memory_bytes=None if None in memory else max(filter(None, memory), default=0),
        cache_bytes=added(cost.cache for each in costs.values() for cost in each),
        read_bytes=added(cost.read for each in costs.values() for cost in each),
        unknown=tuple(unknown),
    )


def _sized(name: str, study: Study, unknown: dict[str, None]) -> ModelSize | None:
    try:
        checkpoint = open_model(expanded(name), download=False)
    except InputError as error:
        unknown[f"model {name}: {error.found}"] = None
        return None
    return ModelSize.measured(checkpoint, dtype=study.compute.dtype, device=study.compute.device)


def _digest(source: str, unknown: dict[str, None]) -> str:
    try:
        return text_digest(source)
    except InputError as error:
        unknown[f"text {source}: {error.found}"] = None
        return source
