"""What one step of a study would take: time, disk, memory.

A layer, the head and a written token of a model are timed, and texts are read as the step would read them; the rest is
arithmetic on tokens and layers. What cannot be known is None.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens, read_examples
from shortstack.data.tokens import encode
from shortstack.decoder import Decoder
from shortstack.decoder.batching import by_length
from shortstack.decoder.wrapping import LOGIT_BYTES, arithmetic
from shortstack.errors import DataError, InputError
from shortstack.evaluation import Amount
from shortstack.evaluation.degeneration import NEW_TOKENS, PROMPTS
from shortstack.evaluation.probes import probes
from shortstack.evaluation.suites import TASKS, named
from shortstack.evaluation.tasks import amounts
from shortstack.healing import Lora
from shortstack.healing.dataset import held_out_count
from shortstack.healing.forecast import (
    ACTIVATION_BYTES,
    STATE_BYTES,
    WRITTEN_TOGETHER,
    head_seconds,
    layer_seconds,
    writing_seconds,
)
from shortstack.healing.options import task_of
from shortstack.healing.training import training_device
from shortstack.planning.measured import Budget
from shortstack.scoring.metrics import metric_named
from shortstack.study.graph import CODES, WRITES_WEIGHTS, Contents, Graph, Step, foreseen, sources
from shortstack.study.grid import Study, expanded
from shortstack.study.runner import text_digest
from shortstack.study.steps import evaluation_options, open_model
from shortstack.study.trial import Trial

REPAIR_WALKS = 4  # the whole model's, the shorter one's, and that again for each place that is refitted
PROFILE_TURNS = 8  # of profile(): one for the memory, one to warm up, six that count
COPY_BYTES_PER_S = 5e8
DIGEST_BYTES_PER_S = 1e9


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine. opening: of a model, but for its weights' bytes; layer, head: of one token.

    outside, inside: of one more token of each of several texts that are written, outside the layers and in one of them.
    """

    opening: float
    layer: float
    head: float
    outside: float
    inside: float


@dataclass(frozen=True)
class Size:
    """A model of a study, as far as this machine knows it."""

    checkpoint: Checkpoint
    pace: Pace
    width: int
    dtype_bytes: int

    @classmethod
    def measured(cls, checkpoint: Checkpoint, *, dtype: str, device: str) -> Size:
        """With one layer and the head loaded, and timed."""
        started = time.perf_counter()
        device = training_device(device)
        computed_in = arithmetic(dtype, checkpoint, device)
        checkpoint.tokenizer()
        decoder = Decoder.tail(checkpoint, checkpoint.anatomy.layers - 1, dtype=computed_in, device=device)
        opening = time.perf_counter() - started
        width = decoder.model.get_submodule(decoder.anatomy.embedding).weight.shape[1]
        pace = Pace(opening, layer_seconds(decoder), head_seconds(decoder), *writing_seconds(decoder))
        return cls(checkpoint, pace, width, computed_in.itemsize)

    @property
    def layers(self) -> int:
        return self.checkpoint.anatomy.layers

    def bytes_of(self, layers: int) -> int:
        """Of a checkpoint with so many layers, as stored."""
        sizes = self.checkpoint.sizes
        return sizes.other_bytes + sum(sizes.layer_bytes) * layers // self.layers

    def parameters_of(self, layers: int) -> int:
        """Of so many layers."""
        return sum(self.checkpoint.sizes.layer_parameters) * layers // self.layers

    def opened(self, layers: int) -> float:
        """Seconds until a model of so many layers is in memory."""
        return self.pace.opening + self.bytes_of(layers) / COPY_BYTES_PER_S

    def written(self, layers: int) -> float:
        """Seconds until a checkpoint of so many layers is on disk, checked and known by its content."""
        size = self.bytes_of(layers)
        return self.pace.opening + size / COPY_BYTES_PER_S + size / DIGEST_BYTES_PER_S

    def passed(self, layers: float, heads: float = 0) -> float:
        """Seconds of one token through so many layers and heads."""
        return layers * self.pace.layer + heads * self.pace.head

    def wrote(self, layers: int, prompts: Sequence[int], rooms: Sequence[int]) -> float:
        """Seconds of writing after prompts of such lengths, with room for so many tokens each."""
        groups = by_length([prompt + room for prompt, room in zip(prompts, rooms, strict=True)])
        steps = sum(max(rooms[place] for place in group) * self.step(layers, len(group)) for group in groups)
        return sum(prompts) * self.passed(layers) + steps

    def step(self, layers: int, texts: int) -> float:
        """Seconds of one more token of so many texts; of few it takes as long as of WRITTEN_TOGETHER."""
        return max(1.0, texts / WRITTEN_TOGETHER) * (self.pace.outside + layers * self.pace.inside)

    def answered(self, layers: int, amount: Amount) -> float:
        """Seconds of a task."""
        passed = amount.passed * self.passed(layers) + amount.scored * self.pace.head
        return passed + amount.steps * self.step(layers, amount.together)


@dataclass(frozen=True)
class Cost:
    """Of one step; disk: of the weights it writes."""

    seconds: float | None = None
    disk: int | None = 0
    memory: int | None = None


class Read(NamedTuple):
    """A text that was read: its tokens, and how long that took."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """A step, a trial that needs it, and the model."""

    step: Step
    trial: Trial
    size: Size

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.step.arguments

    @property
    def gone(self) -> int:
        """How many layers go."""
        return self.trial.amount(self.size.layers)

    @property
    def source(self) -> bool:
        """Whether it reads the model itself, not what was made of it."""
        return self.step.reads.get("checkpoint") == self.trial.model

    @property
    def layers(self) -> int:
        """Of the checkpoint that it reads."""
        return self.size.layers if self.source else self.size.layers - self.gone


@dataclass(frozen=True)
class Costs:
    """Costs of steps, from the sizes of models. unknown: takes in what no number could be found for, and why."""

    study: Study
    sizes: Mapping[str, Size | None]
    unknown: dict[str, None]
    texts: dict[tuple[Any, ...], Read | None] = field(default_factory=dict)
    asked: dict[tuple[Any, ...], Sequence[Amount] | None] = field(default_factory=dict)

    def of(self, step: Step, trial: Trial) -> Cost:
        size = self.sizes[trial.model]
        return _KINDS[step.kind](self, Asked(step, trial, size)) if size else Cost(disk=None)

    def score(self, asked: Asked) -> Cost:
        arguments, size = asked.arguments, asked.size
        feeds = {metric_named(name).feed for name in arguments["metrics"]}
        layers, heads = 0.0, 0
        if feeds & {"loss", "kl", "repair"}:
            layers, heads = size.layers * (size.layers + 1) / 2, size.layers + 1
        elif feeds & {"hidden"}:
            layers = size.layers
        if "gradient" in feeds:
            layers, heads = layers + 3 * size.layers, heads + 3
        walk = self.times(arguments, size, size.passed(layers, heads)) if asked.trial.calibration else 0.0
        return Cost(added((size.opened(size.layers), walk)), 0, self.whole(size))

    def plan(self, asked: Asked) -> Cost:
        arguments, trial, size = asked.arguments, asked.trial, asked.size
        if not trial.choice.search and trial.step is None:
            return Cost(size.pace.opening, 0, 0)
        layers = size.layers * (size.layers + 1) / 2
        walks = asked.gone / (trial.step or 1)
        if trial.choice.search:
            sets = Budget().generations * Budget().offspring
            layers, walks = layers + sets * size.layers, 1
        walk = self.times(arguments, size, walks * size.passed(layers, layers / size.layers))
        return Cost(added((size.opened(size.layers), walk)), 0, self.whole(size))

    def prune(self, asked: Asked) -> Cost:
        size, kept = asked.size, asked.size.layers - asked.gone
        writing, refitting = size.written(kept), asked.arguments["repair"]
        if not refitting:
            return Cost(writing, size.bytes_of(kept), 0)
        tokens = refitting["samples"] * refitting["length"]
        walks = size.opened(size.layers) + tokens * size.passed(REPAIR_WALKS * size.layers)
        return Cost(writing + walks, size.bytes_of(kept), self.whole(size))

    def heal(self, asked: Asked) -> Cost:
        return self.healed(asked.arguments, asked.size, asked.size.layers - asked.gone)

    def turns(self, asked: Asked) -> Cost:
        gone, size = asked.gone, asked.size
        step = asked.trial.step or gone
        kept = [size.layers - min(n + step, gone) for n in range(0, gone, step)]
        each = [self.healed(asked.arguments, size, layers) for layers in kept]
        seconds = added([*(cost.seconds for cost in each), *(size.written(layers) for layers in kept)])
        return Cost(seconds, each[-1].disk, each[0].memory)

    def healed(self, arguments: Mapping[str, Any], size: Size, kept: int) -> Cost:
        """Of healing so many layers: the frozen ones are walked once, a backward pass takes twice a forward one."""
        task = task_of(arguments)
        trained, running = task.method.layer_counts(kept)
        read, schedule = self.learnt(arguments, size), task.schedule
        weights = 0 if isinstance(task.method, Lora) else size.parameters_of(trained)
        activations = schedule.micro * task.training_data.max_length * size.width * running * ACTIVATION_BYTES
        resident = (
            size.parameters_of(running) * size.dtype_bytes + size.checkpoint.sizes.other_parameters * size.dtype_bytes
        )
        memory = resident + weights * STATE_BYTES + activations + 2 * LOGIT_BYTES[self.study.compute.device != "cuda"]
        each = size.passed(kept - running) + schedule.epochs * 3 * size.passed(running, 1)
        seconds = read and read.seconds + read.tokens * each + size.opened(kept) + size.written(kept)
        return Cost(seconds, size.bytes_of(kept), int(memory))

    def evaluate(self, asked: Asked) -> Cost:
        arguments, size, layers = asked.arguments, asked.size, asked.layers
        parts: list[float | None] = [size.opened(layers)]
        for text in arguments["perplexity"]:
            parts.append(self.times({**arguments, "text": text}, size, size.passed(layers, 1), held_out=True))
        parts.append(self.answered(arguments, size, layers) if arguments["tasks"] else 0.0)
        parts.append(self.probed(arguments, size, layers) if arguments["probe_items"] else 0.0)
        cut, wanted = not asked.source or size.checkpoint.record.get("verb") in {"prune", "heal"}, arguments["collapse"]
        if cut if wanted is None else wanted:
            prompts = [len(encode(size.checkpoint.tokenizer(), prompt)) for prompt in PROMPTS]
            parts.append(size.wrote(layers, prompts, [NEW_TOKENS] * len(prompts)))
        return Cost(added(parts), 0, self.whole(size))

    def answered(self, arguments: Mapping[str, Any], size: Size, layers: int) -> float | None:
        """Seconds of a study's tasks."""
        asked = self.questions(arguments, size.checkpoint)
        return None if asked is None else added(size.answered(layers, each) for each in asked)

    def questions(self, arguments: Mapping[str, Any], checkpoint: Checkpoint) -> Sequence[Amount] | None:
        """How much the tasks ask; None where their documents are not at hand."""
        names, key = named(arguments["tasks"]), (arguments["data_dir"], checkpoint.source)
        if key not in self.asked:
            self.asked[key] = None
            elsewhere = [name for name in names if name not in TASKS or not arguments["data_dir"]]
            if elsewhere:
                self.unknown[f"time of {', '.join(elsewhere)}: the documents may be on the hub"] = None
                return None
            try:
                tasks = evaluation_options(expanded(arguments))["tasks"]
                self.asked[key] = amounts(tasks, checkpoint.tokenizer())
            except (InputError, DataError) as error:
                self.unknown[f"time of {', '.join(names)}: {error.found}"] = None
        return self.asked[key]

    def probed(self, arguments: Mapping[str, Any], size: Size, layers: int) -> float:
        """Seconds of the generation probes."""
        tokenizer, items = size.checkpoint.tokenizer(), probes(arguments["seed"], arguments["probe_items"])
        prompts = [len(encode(tokenizer, item.prompt)) for item in items]
        return size.wrote(layers, prompts, [item.room(tokenizer) for item in items])

    def profile(self, asked: Asked) -> Cost:
        arguments, size, layers = asked.arguments, asked.size, asked.layers
        prompt, new, seconds = arguments["prompt"], arguments["new_tokens"], 0.0
        for batch in arguments["batch_sizes"]:
            seconds += PROFILE_TURNS * (batch * prompt * size.passed(layers) + new * size.step(layers, batch))
        return Cost(size.opened(layers) + seconds, 0, self.whole(size))

    def whole(self, size: Size) -> int:
        """Memory of the loaded model."""
        return size.checkpoint.parameters * size.dtype_bytes + LOGIT_BYTES[self.study.compute.device != "cuda"]

    def times(self, looking: Mapping[str, Any], size: Size, seconds: float, *, held_out: bool = False) -> float | None:
        """Seconds of reading a text, and of each of its tokens that are looked at."""
        if isinstance(looking["samples"], int):
            return float(looking["samples"] * looking["length"] * seconds)

        def read() -> int:
            options = {"samples": None, "length": looking["length"], "held_out": held_out}
            return Tokens.read(expanded(looking["text"]), size.checkpoint.tokenizer(), **options).ids.numel()

        found = self.once((looking["text"], looking["length"], size.checkpoint.source), looking["text"], read)
        return found and found.seconds + found.tokens * seconds

    def learnt(self, arguments: Mapping[str, Any], size: Size) -> Read | None:
        """What healing sees in an epoch."""
        names = ("data", "max_length", "max_samples", "held_out")

        def read() -> int:
            tokenizer = size.checkpoint.tokenizer()
            found = read_examples(expanded(arguments["data"]), tokenizer, max_length=arguments["max_length"])
            found = found[: arguments["max_samples"]]
            return sum(len(example.ids) for example in found[held_out_count(len(found), arguments["held_out"]) :])

        key = *(arguments[name] for name in names), size.checkpoint.source
        return self.once(key, arguments["data"], read)

    def once(self, key: tuple[Any, ...], source: str, read: Callable[[], int]) -> Read | None:
        """A text, read once; None for a hub dataset, or one that is not there."""
        if key not in self.texts:
            self.texts[key] = None
            if any(reason.startswith(f"text {source}: ") for reason in self.unknown):
                return None
            if text_digest(source) == source:
                self.unknown[f"text {source}: its length is known to the hub"] = None
            else:
                started = time.perf_counter()
                self.texts[key] = Read(read(), time.perf_counter() - started)
        return self.texts[key]


def added(values: Iterable[Any]) -> Any:
    """The sum, or None where a part is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)


_KINDS: Mapping[str, Callable[[Costs, Asked], Cost]] = {kind: getattr(Costs, kind) for kind in CODES}
# Until a new process has imported what steps call: 7.1 s of user and 0.8 s of system time on an AMD EPYC, 2026-11-26.
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
