"""What a study would take: its steps once they share work, and about how much time, disk and memory. Nothing is run.

One layer and the head of each model that is on this machine are timed; the rest is arithmetic on tokens and layers. What
cannot be known is None: a model that would have to be downloaded, a text of unknown length, tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.devices import arithmetic
from shortstack.errors import InputError
from shortstack.examples import read_examples
from shortstack.graph import WRITES_WEIGHTS, Contents, Graph, Step, foreseen, sources
from shortstack.healing.forecast import ACTIVATION_BYTES, STATE_BYTES, head_seconds, layer_seconds
from shortstack.healing_options import heal_groups
from shortstack.layered import LOGIT_BYTES
from shortstack.lessons import HELD_OUT_SHARE
from shortstack.metrics import metric_named
from shortstack.planning import parse_drop, parse_layers
from shortstack.running import text_digest
from shortstack.selecting import Budget
from shortstack.steps import open_model
from shortstack.study import Study, Trial, expanded
from shortstack.tokens import Tokens
from shortstack.training import training_device
from shortstack.walk import Decoder

REPAIR_WALKS = 4  # the whole model's, the shorter one's, and that again for each place that is refitted
COPY_BYTES_PER_S = 5e8


@dataclass(frozen=True)
class Size:
    """A model of a study, as far as this machine knows it. layer, head: seconds of one token."""

    checkpoint: Checkpoint
    layer: float
    head: float
    width: int
    dtype_bytes: int

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


@dataclass(frozen=True)
class Estimate:
    """asked: steps of all trials, by kind; steps: at most so many are run, since trials share them.

    seconds: by kind, of one worker. disk_bytes: weights at most, all kept; least_disk_bytes: with --keep none. unknown: what
    no number could be found for, and why; numbers that depend on it are None.
    """

    trials: int
    asked: Mapping[str, int]
    steps: Mapping[str, int]
    seconds: Mapping[str, float | None]
    disk_bytes: int | None
    least_disk_bytes: int | None
    memory_bytes: int | None
    unknown: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(study: Study) -> Estimate:
    """What run_study() would do, without doing it."""
    unknown: dict[str, None] = {}
    names = dict.fromkeys(trial.model for trial in study.trials)
    sizes = {name: _sized(name, study, unknown) for name in names}
    models = {name: Contents(name, name, size.layers if size else None) for name, size in sizes.items()}
    graph = Graph(study, models, {source: _digest(source, unknown) for source in sources(study)})
    costs = _Costs(study, sizes, unknown)
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
        {kind: _added(cost.seconds for of, cost in each if of == kind) for kind in kinds},
        _added(written),
        None if None in written else 2 * max((size for size in written if size is not None), default=0),
        None if any(cost.memory is None for _, cost in each) else max(cost.memory or 0 for _, cost in each),
        tuple(unknown),
    )


def _added(values: Iterable[Any]) -> Any:
    """The sum, or None where a part is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)


def _sized(name: str, study: Study, unknown: dict[str, None]) -> Size | None:
    try:
        checkpoint = open_model(expanded(name), download=False)
    except InputError as error:
        unknown[f"model {name}: {error.found}"] = None
        return None
    device = training_device(study.compute.device)
    dtype = arithmetic(study.compute.dtype, checkpoint, device)
    decoder = Decoder.tail(checkpoint, checkpoint.anatomy.layers - 1, dtype=dtype, device=device)
    width = decoder.model.get_submodule(decoder.anatomy.embedding).weight.shape[1]
    return Size(checkpoint, layer_seconds(decoder), head_seconds(decoder), width, dtype.itemsize)


def _digest(source: str, unknown: dict[str, None]) -> str:
    try:
        return text_digest(source)
    except InputError as error:
        unknown[f"text {source}: {error.found}"] = None
        return source


@dataclass(frozen=True)
class Cost:
    """Of one step; disk: of the weights it writes."""

    seconds: float | None = None
    disk: int | None = 0
    memory: int | None = None


@dataclass(frozen=True)
class _Costs:
    """Costs of steps, from the sizes of models."""

    study: Study
    sizes: Mapping[str, Size | None]
    unknown: dict[str, None]
    counted: dict[tuple[Any, ...], int | None] = field(default_factory=dict)

    def of(self, step: Step, trial: Trial) -> Cost:
        size = self.sizes[trial.model]
        if size is None:
            return Cost(disk=None)
        return _KINDS[step.kind](self, step.arguments, trial, size)

    def score(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        feeds = {metric_named(name).feed for name in arguments["metrics"]}
        tokens = self.tokens(arguments, size) if trial.calibration else 0
        layers, heads = 0.0, 0
        if feeds & {"loss", "kl", "repair"}:
            layers, heads = size.layers * (size.layers + 1) / 2, size.layers + 1
        elif feeds & {"hidden"}:
            layers = size.layers
        if "gradient" in feeds:
            layers, heads = layers + 3 * size.layers, heads + 3
        return Cost(_times(tokens, layers * size.layer + heads * size.head), 0, self.whole(size))

    def plan(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        if not trial.choice.search and trial.step is None:
            return Cost(1.0, 0, 0)
        tokens, layers = self.tokens(arguments, size), size.layers * (size.layers + 1) / 2
        walks = self.gone(trial, size) / (trial.step or 1)
        if trial.choice.search:
            sets = Budget().generations * Budget().offspring
            layers, walks = layers + sets * size.layers, 1
        heads = layers / size.layers
        return Cost(_times(tokens, walks * (layers * size.layer + heads * size.head)), 0, self.whole(size))

    def prune(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        kept = size.bytes_of(size.layers - self.gone(trial, size))
        copying = kept / COPY_BYTES_PER_S
        if not arguments["repair"]:
            return Cost(copying, kept, 0)
        refitting = arguments["repair"]
        tokens = refitting["samples"] * refitting["length"]
        return Cost(copying + tokens * REPAIR_WALKS * size.layers * size.layer, kept, self.whole(size))

    def heal(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        return self.healed(arguments, size, size.layers - self.gone(trial, size))

    def turns(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        gone = self.gone(trial, size)
        step = trial.step or gone
        each = [self.healed(arguments, size, size.layers - min(n + step, gone)) for n in range(0, gone, step)]
        return Cost(_added(cost.seconds for cost in each), each[-1].disk, each[0].memory)

    def healed(self, arguments: Mapping[str, Any], size: Size, kept: int) -> Cost:
        """Of healing so many layers: the frozen ones are walked once, a backward pass takes twice a forward one."""
        learned, part, _, course = heal_groups(arguments)
        adapters = part.method not in ("partial", "full")
        trained = kept if adapters or part.method == "full" else min(kept, 3 if part.last is None else part.last)
        if part.layers:
            trained = len(parse_layers(part.layers))
        running = kept if adapters or part.near_cut or part.layers else trained
        tokens = self.learnt(arguments, size)
        epoch = 3 * (running * size.layer + size.head)
        weights = 0 if adapters else size.parameters_of(trained)
        schedule = course.made()
        activations = schedule.micro * learned.max_length * size.width * running * ACTIVATION_BYTES
        resident = (
            size.parameters_of(running) * size.dtype_bytes + size.checkpoint.sizes.other_parameters * size.dtype_bytes
        )
        memory = resident + weights * STATE_BYTES + activations + 2 * LOGIT_BYTES[self.study.compute.device != "cuda"]
        seconds = _times(tokens, (kept - running) * size.layer + schedule.epochs * epoch)
        return Cost(seconds, size.bytes_of(kept), int(memory))

    def evaluate(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        looking = ({**arguments, "text": text} for text in arguments["perplexity"])
        tokens = _added(self.tokens(each, size, held_out=True) for each in looking)
        if arguments["tasks"] or arguments["probe_items"]:
            self.unknown["time of tasks and probes"] = None
            tokens = None
        return Cost(_times(tokens, size.layers * size.layer + size.head), 0, self.whole(size))

    def profile(self, arguments: Mapping[str, Any], trial: Trial, size: Size) -> Cost:
        self.unknown["time of profiles"] = None
        return Cost(None, 0, self.whole(size))

    def gone(self, trial: Trial, size: Size) -> int:
        """How many layers go."""
        return (
            len(parse_layers(trial.choice.layers)) if trial.choice.layers else parse_drop(trial.drop or 0, size.layers)
        )

    def whole(self, size: Size) -> int:
        """Memory of the loaded model."""
        return size.checkpoint.parameters * size.dtype_bytes + LOGIT_BYTES[self.study.compute.device != "cuda"]

    def tokens(self, looking: Mapping[str, Any], size: Size, *, held_out: bool = False) -> int | None:
        """How many tokens of a text are looked at."""
        if isinstance(looking["samples"], int):
            return int(looking["samples"] * looking["length"])
        key = looking["text"], looking["length"], size.checkpoint.source

        def read() -> int:
            options = {"samples": None, "length": looking["length"], "held_out": held_out}
            return Tokens.read(expanded(looking["text"]), size.checkpoint.tokenizer(), **options).ids.numel()

        return self.once(key, looking["text"], read)

    def learnt(self, arguments: Mapping[str, Any], size: Size) -> int | None:
        """How many tokens healing sees in an epoch."""
        names = ("data", "max_length", "max_samples", "held_out")
        key = (*(arguments[name] for name in names), size.checkpoint.source)

        def read() -> int:
            tokenizer = size.checkpoint.tokenizer()
            found = read_examples(expanded(arguments["data"]), tokenizer, max_length=arguments["max_length"])
            found = found[: arguments["max_samples"]]
            kept_back = arguments["held_out"] or max(1, round(len(found) * HELD_OUT_SHARE))
            return sum(len(example.ids) for example in found[kept_back:])

        return self.once(key, arguments["data"], read)

    def once(self, key: tuple[Any, ...], source: str, read: Callable[[], int]) -> int | None:
        """A number of tokens, read from a text once; None for a hub dataset, or a text that is not there."""
        if key not in self.counted:
            self.counted[key] = None
            if f"text {source}: none" not in self.unknown and text_digest(source) == source:
                self.unknown[f"text {source}: its length is known to the hub"] = None
            elif f"text {source}: none" not in self.unknown:
                self.counted[key] = read()
        return self.counted[key]


def _times(tokens: float | None, seconds: float) -> float | None:
    return None if tokens is None else tokens * seconds


_KINDS: Mapping[str, Callable[[_Costs, Mapping[str, Any], Trial, Size], Cost]] = {
    kind: getattr(_Costs, kind) for kind in ("score", "plan", "prune", "heal", "turns", "evaluate", "profile")
}
