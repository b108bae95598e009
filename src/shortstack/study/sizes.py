"""How large and how fast a study's models are, and how much there is to read in its texts and tasks.

A layer, the head and a written token of a model are timed, and texts are read as the steps would read them.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.writer import COPY_BYTES_PER_S
from shortstack.data import Tokens, read_examples
from shortstack.data.examples import expected_samples
from shortstack.data.mixture import Weighted, parse_sources
from shortstack.data.sources import OWN
from shortstack.data.splits import HELD_OUT
from shortstack.decoder import Decoder
from shortstack.decoder.batching import by_length
from shortstack.decoder.decoder import STREAM_BYTES
from shortstack.decoder.generation import ROWS
from shortstack.decoder.hooks import linear_layers
from shortstack.decoder.streaming import must_stream
from shortstack.decoder.wrapping import LOGIT_BYTES, arithmetic
from shortstack.errors import DataError, InputError
from shortstack.evaluation import Amount, Tasks
from shortstack.evaluation.suites import TASKS, named
from shortstack.evaluation.tasks import amounts
from shortstack.healing.dataset import held_out_count
from shortstack.healing.forecast import WRITTEN_TOGETHER, head_seconds, layer_seconds, writing_seconds
from shortstack.machine.device import pick_device
from shortstack.machine.numbers import is_share, part_of
from shortstack.repairing.fit import fit_seconds
from shortstack.study.references import expanded, text_digest
from shortstack.study.step_cost import Cost

DIGEST_BYTES_PER_S = 1e9
LARGEST_FIT = 4096  # inputs of a matrix whose fit is timed as it is
READ_SAMPLE = 256 << 20  # bytes of a checkpoint that are read to see how fast that is


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
class ModelSize:
    """A model of a study, as far as this machine knows it. widest: inputs of the widest matrix in a layer.

    streamed: its weights are read layer by layer, once for each pass.
    """

    checkpoint: Checkpoint
    pace: Pace
    width: int
    widest: int
    dtype_bytes: int
    logit_bytes: int
    device: str = "cpu"
    streamed: bool = False

    @classmethod
    def measured(cls, checkpoint: Checkpoint, *, dtype: str, device: str, stream: bool | None = None) -> ModelSize:
        """With one layer and the head loaded, and timed. stream: None is where the model does not fit in memory."""
        started, device = time.perf_counter(), pick_device(device)
        logit_bytes = LOGIT_BYTES[device == "cpu"]
        computed_in = arithmetic(dtype, checkpoint, device)
        streamed = must_stream(checkpoint, computed_in, device) if stream is None else stream
        checkpoint.tokenizer()
        decoder = Decoder.tail(checkpoint, checkpoint.anatomy.layers - 1, dtype=computed_in, device=device)
        opening = time.perf_counter() - started
        width = decoder.width
        linear = linear_layers(decoder.layers[-1]).values()
        widest = max((matrix.in_features for matrix in linear), default=width)
        pace = Pace(opening, layer_seconds(decoder), head_seconds(decoder), *writing_seconds(decoder))
        return cls(checkpoint, pace, width, widest, computed_in.itemsize, logit_bytes, device, streamed)

    @property
    def layers(self) -> int:
        return self.checkpoint.anatomy.layers

    @property
    def loaded_bytes(self) -> int:
        """Memory of what is held of the model, with room for logits."""
        sizes = self.checkpoint.sizes
        if not self.streamed:
            loaded, stored = self.checkpoint.parameters * self.dtype_bytes, self.checkpoint.weight_bytes
            return (
                loaded + (stored if loaded != stored else 0) + self.logit_bytes
            )  # files are mapped while they are converted
        layer = max(sizes.layer_parameters) * self.dtype_bytes + 2 * max(sizes.layer_bytes)  # one computes, one comes
        return sizes.other_parameters * self.dtype_bytes + layer + self.logit_bytes

    def bytes_of(self, layers: int) -> int:
        """Bytes of a checkpoint with so many layers, as stored."""
        sizes = self.checkpoint.sizes
        return sizes.other_bytes + sum(sizes.layer_bytes) * layers // self.layers

    def parameters_of(self, layers: int) -> int:
        """Parameters of so many layers."""
        return sum(self.checkpoint.sizes.layer_parameters) * layers // self.layers

    def opened(self, layers: int) -> float:
        """Seconds until a model of so many layers is in memory, or where it is streamed can be walked."""
        return self.pace.opening + (0.0 if self.streamed else self.bytes_of(layers) / COPY_BYTES_PER_S)

    def walk(self, seconds: float | None, layers: int, *, passes: float = 1.0, hidden: int = 0, held: int = 0) -> Cost:
        """The cost of opening so many layers and of passes over them that take so many seconds where they are in memory.

        In bytes of hidden states, hidden: those that pass a layer together, of which more than STREAM_BYTES pass in turns;
        held: those that stay until the end.
        """
        passes *= max(1, -(-hidden // STREAM_BYTES))
        read = int(self.bytes_of(layers) * (passes if self.streamed else 1))
        waiting = passes * self.bytes_of(layers) / _read_speed(self.checkpoint.shards[0]) if self.streamed else 0.0
        known = None if seconds is None else self.opened(layers) + max(seconds, waiting)
        return Cost(known, 0, self.loaded_bytes + min(hidden, STREAM_BYTES) + held, read=read)

    def hidden(self, tokens: int, streams: int) -> int:
        """Bytes of the hidden states of so many tokens in so many streams."""
        return tokens * streams * self.width * self.dtype_bytes

    def written(self, layers: int) -> float:
        """Seconds until a checkpoint of so many layers is on disk, checked and known by its content."""
        size = self.bytes_of(layers)
        return self.pace.opening + size / COPY_BYTES_PER_S + size / DIGEST_BYTES_PER_S

    def passed(self, layers: float, heads: float = 0) -> float:
        """Seconds of one token through so many layers and heads."""
        return layers * self.pace.layer + heads * self.pace.head

    def fitted(self, tokens: int, residuals: int = 1) -> float:
        """Seconds of refitting the widest matrix on so many tokens, for several residuals at once; timed when asked for."""
        scale = max(
            1.0, self.widest / LARGEST_FIT
        )  # sums and solutions grow with the third power of all sizes together
        inputs, width, some = (max(1, round(size / scale)) for size in (self.widest, self.width, tokens))
        return scale**3 * _fit_seconds(inputs, width, self.device, some, residuals)

    def fit_bytes(self, tokens: int) -> int:
        """Bytes of the sums, in float64, for refitting the widest matrix on so many tokens, and of what solves them."""
        judging = min(self.widest, tokens // HELD_OUT)
        fitting = min(self.widest, tokens - tokens // HELD_OUT)
        return 8 * (self.widest * (2 * fitting + judging) + self.width * (fitting + judging))

    def wrote(self, layers: int, prompts: Sequence[int], rooms: Sequence[int]) -> float:
        """Seconds of writing after prompts of such lengths, with room for so many tokens each."""
        groups = by_length([prompt + room for prompt, room in zip(prompts, rooms, strict=True)], batch=ROWS)
        steps = sum(max(rooms[place] for place in group) * self.step(layers, len(group)) for group in groups)
        return sum(prompts) * self.passed(layers) + steps

    def wrote_itself(self, texts: int, length: int) -> float:
        """Seconds in which the whole model writes so many texts of so many tokens, from nothing."""
        return self.wrote(self.layers, [1] * texts, [length] * texts)

    def step(self, layers: int, texts: int) -> float:
        """Seconds of one more token of so many texts; of few it takes as long as of WRITTEN_TOGETHER."""
        return max(1.0, texts / WRITTEN_TOGETHER) * (self.pace.outside + layers * self.pace.inside)

    def answered(self, layers: int, amount: Amount) -> float:
        """Seconds of a task."""
        passed = amount.passed * self.passed(layers) + amount.scored * self.pace.head
        return passed + amount.steps * self.step(layers, amount.together)


class TextSize(NamedTuple):
    """A text that was read: its tokens, and how long that took."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class TextSizes:
    """How much there is to read in texts and tasks, each read once. unknown: takes in what could not be found, and why."""

    unknown: dict[str, None]
    read: dict[tuple[Any, ...], TextSize | None] = field(default_factory=dict)
    amounts: dict[tuple[Any, ...], Sequence[Amount] | None] = field(default_factory=dict)

    def seconds(
        self, windows: Mapping[str, Any], model: ModelSize, each: float, *, held_out: bool = False
    ) -> float | None:
        """Seconds of reading the windows of a text, and of each of their tokens."""
        text = self.windows(windows, model, held_out=held_out)
        return text and text.seconds + text.tokens * each

    def windows(self, windows: Mapping[str, Any], model: ModelSize, *, held_out: bool = False) -> TextSize | None:
        """The tokens in the windows of a text, and the seconds of reading them."""
        source, samples, length = windows["text"], windows["samples"], windows["length"]
        if isinstance(samples, int):
            sources = parse_sources(expanded(source))
            own = any(part.source == OWN for part in sources)
            return TextSize(samples * len(sources) * length, model.wrote_itself(samples, length) if own else 0.0)

        def count() -> int:
            read = partial(Tokens.read, samples=None, length=length, held_out=held_out)
            tokenizer = model.checkpoint.tokenizer()
            return sum(read(each.source, tokenizer).ids.numel() for each in parse_sources(expanded(source)))

        found = self._once((source, length, model.checkpoint.source), source, count)
        return found._replace(tokens=part_of(samples, found.tokens)) if found and is_share(samples) else found

    def training(self, arguments: Mapping[str, Any], model: ModelSize) -> TextSize | None:
        """What healing sees in an epoch; at most that, where the model writes a part of it."""
        source, longest, held_out = arguments["data"], arguments["max_length"], arguments["held_out"]
        sources = parse_sources(expanded(source))
        if any(part.source == OWN for part in sources):
            return self._written(sources, arguments, model)
        if all(part.endless for part in sources):  # windows that are full, of which none need be made to count them
            most, tokenizer = arguments["max_samples"], model.checkpoint.tokenizer()
            samples = expected_samples(expanded(source), tokenizer, max_length=longest, most=most)
            return TextSize(max(0, samples - held_out_count(samples, held_out)) * longest, 0.0)

        def count() -> int:
            most, tokenizer = arguments["max_samples"], model.checkpoint.tokenizer()
            examples = read_examples(expanded(source), tokenizer, max_length=longest, most=most)
            return sum(len(example.ids) for example in examples[held_out_count(len(examples), held_out) :])

        return self._once((source, longest, arguments["max_samples"], held_out, model.checkpoint.source), source, count)

    def _written(self, sources: Sequence[Weighted], arguments: Mapping[str, Any], model: ModelSize) -> TextSize | None:
        """Of data that a model writes in part: every sample as long as it may be, and the seconds of writing."""
        most, longest = arguments["max_samples"], arguments["max_length"]
        if not isinstance(most, int):  # a share of what is known later
            names = ", ".join(part.source for part in sources)
            self.unknown[f"text {names}: its length is known when the model has written it"] = None
            return None
        whole = sum(part.weight for part in sources)
        own = next(part.weight for part in sources if part.source == OWN)
        return TextSize(most * longest, model.wrote_itself(round(most * own / whole), longest))

    def tasks(self, options: Mapping[str, Any], model: ModelSize, load: Callable[[], Tasks]) -> Sequence[Amount] | None:
        """How much the tasks of a study ask; None where their documents are not at hand."""
        names, key = named(options["tasks"]), (options["data_dir"], model.checkpoint.source)
        if key not in self.amounts:
            self.amounts[key] = None
            elsewhere = [name for name in names if name not in TASKS or not options["data_dir"]]
            if elsewhere:
                self.unknown[f"time of {', '.join(elsewhere)}: the documents may be on the hub"] = None
                return None
            try:
                self.amounts[key] = amounts(load(), model.checkpoint.tokenizer())
            except (InputError, DataError) as error:
                if error.parameter == "num_fewshot":
                    raise
                self.unknown[f"time of {', '.join(names)}: {error.found}"] = None
        return self.amounts[key]

    def _once(self, key: tuple[Any, ...], source: str, count: Callable[[], int]) -> TextSize | None:
        """A text, read once; None for a hub dataset, or one that is not there."""
        if key not in self.read:
            self.read[key] = None
            if any(reason.startswith(f"text {source}: ") for reason in self.unknown):
                return None
            if text_digest(source) == source:
                self.unknown[f"text {source}: its length is known to the hub"] = None
            else:
                started = time.perf_counter()
                self.read[key] = TextSize(count(), time.perf_counter() - started)
        return self.read[key]


@functools.cache
def _read_speed(path: Path) -> float:
    """Bytes a second from the disk: what the page cache has of the file is let go before, where the system can."""
    buffer, read = bytearray(1 << 20), 0
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, READ_SAMPLE, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while read < READ_SAMPLE and (count := file.readinto(buffer)):
            read += count
    return read / max(time.perf_counter() - started, 1e-9)


@functools.cache
def _fit_seconds(inputs: int, width: int, device: str, tokens: int, residuals: int) -> float:
    return fit_seconds(inputs, width, device, tokens=tokens, residuals=residuals)
