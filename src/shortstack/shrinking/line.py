"""shrink(): the whole line by the clock, a function for each stage, in order; the result is one folder for each cut.

    open -> rate -> measure the unpruned model -> choose -> repair and prune -> heal -> measure -> conclude

What a stage found lies in `<out>.partial` until the end (stages.py), so that a killed run goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.file_names import SHRUNK
from shortstack.data import Tokens
from shortstack.data.mixture import parse_sources, text_digest
from shortstack.data.sources import OWN
from shortstack.data.tokens import JUDGING
from shortstack.decoder import calibration_tokens, text_in_time
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import ShortstackError
from shortstack.healing import Healing, heal
from shortstack.machine.clock import Clock
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import check_new, clear, remove, rename_new
from shortstack.machine.locks import OutputLock
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning import Plan, select
from shortstack.profiling.speed import forward_speed
from shortstack.pruning import prune
from shortstack.scoring import score
from shortstack.shrinking import reference
from shortstack.shrinking.card import dress
from shortstack.shrinking.checks import CheckResult, check_shrink, in_words_of_shrink
from shortstack.shrinking.clock import (
    LEVELS,
    NOTED,
    WRITING,
    Amounts,
    ClockProgress,
    amounts_for,
    check_minutes,
    check_unfinished,
    clock_of,
    noting,
)
from shortstack.shrinking.measuring import Measurement
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import NO_HEALING, Candidate, Measured, Shrunk, Unpruned
from shortstack.shrinking.retention import TRIALS, TriedCut, first_amount, kept, largest, least, next_amount
from shortstack.shrinking.route import Route
from shortstack.shrinking.stages import Stages, bytes_in, folder_of, loaded, save
from shortstack.shrinking.verdict import concluded, settings

COMPARED_BY = 0.7  # of the time of a cut before it is measured: after that it is not timed
MEASURED_BY = 0.35  # of the minutes: after that the unpruned model is not measured on more
PROBED_BY = 0.6  # of the minutes: after that it is not probed either
REPAIRED_BY = 0.7  # of the time of a cut: after that it is not repaired
SLOWER = 1.6  # times what the unpruned model took, by its share of layers, measuring a cut may take
CONCLUDING = 6.0  # seconds for card and report
LEAST_HEALING = 20.0  # seconds; with less nothing heals


@typed
def shrink(
    model: Model,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
    began: float | None = None,
) -> Shrunk:
    """Choose layers, cut, repair, heal and measure as a recipe has it; the result is the new checkpoint directory `out`.

    It ends within options.minutes: with little time there is less of everything, which `left_out` tells. What is done lies
    in `<out>.partial` until the end; killed and called again, with other options too, it goes on in the time it has left.
    began: when the time began, by time.monotonic(), where it was before the call.

    Raises:
        OutputError: `out` exists, lies in the model, another process makes it, or the disk has no room.
        InputError: a recipe without data, options that exclude each other, or too few minutes to load the model and choose.
        PlanError: no such number of layers can go.
        DataError: data or texts cannot be read, or are too few.
        ShortstackError: no cut keeps the share that was asked for.
    """
    options, out, began = options or ShrinkOptions(), Path(out), time.monotonic() if began is None else began
    return _shrink(model, {out: None}, options, compute, progress, began)[0]


@typed
def shrink_each(
    model: Model,
    outs: Mapping[str, Path],
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> list[Shrunk]:
    """Make several cuts of one model, which share the minutes and all that does not depend on the cut.

    outs: the new directory of each, by how much goes, as options.drop says it. Each appears when it is made; a call that
    follows a killed one makes those that are missing.
    """
    options, began = options or ShrinkOptions(), time.monotonic()
    drops = {Path(out): drop for drop, out in outs.items()}
    return _shrink(model, drops, options, compute, progress, began)


def _shrink(
    model: Model,
    drops: Mapping[Path, str | None],
    options: ShrinkOptions,
    compute: Compute,
    progress: Progress,
    began: float,
) -> list[Shrunk]:
    """Lock the outputs, check all that can be known, and make what is not made yet. drops: how much goes, by output."""
    source, first = Checkpoint.of(model), next(iter(drops))
    if not first.name:
        check_new(first)
    with in_words_of_shrink(), ExitStack() as locks:
        routes = {out: Route.of(options, drop) for out, drop in drops.items()}
        for out in routes:
            locks.enter_context(OutputLock(out))
        folder = folder_of(first)
        stages = Stages(folder, {"model": source.identity, "compute": asdict(compute)}, source)
        places = {
            out: stages.place("made", route=repr(route), options=asdict(options)) for out, route in routes.items()
        }
        missing = {out: route for out, route in routes.items() if not _is_made(out, places[out])}
        if missing:
            check_unfinished(folder / NOTED)
            progress("checking", 0, 1)
            checked = check_shrink(
                source, routes, options, compute, made=routes.keys() - missing.keys(), present=bytes_in(folder)
            )
            progress("checking", 1, 1)
            first_route = next(iter(routes.values()))
            clock = clock_of(first_route.seconds(options), folder / NOTED, before=time.monotonic() - began)
            with noting(ClockProgress(progress, clock, folder / NOTED)) as told:
                line = Line(source, first_route, options, compute, clock, stages, told, checked, len(routes))
                for number, (out, route) in enumerate(missing.items()):
                    if not places[out].exists():
                        line.finish(places[out], out, route, share=1 / (len(missing) - number))
                    rename_new(places[out], out)
        result = [loaded(_noted(place), Shrunk) for place in places.values()]
        with suppress(OSError):  # the outputs are whole: the same command removes what is left
            clear(folder, last=("made", NOTED))
    return result


@dataclass(frozen=True)
class Line:
    """A model on its way to a shorter one.

    cuts: that share the minutes. What the clock decides lies in the folder, too: a run that goes on decides the same.
    """

    source: Checkpoint
    route: Route
    options: ShrinkOptions
    compute: Compute
    clock: Clock
    stages: Stages
    progress: Progress
    checked: CheckResult
    cuts: int = 1

    def finish(self, place: Path, out: Path, route: Route, *, share: float) -> None:
        """Make a cut at `place`, in that share of the time that is left once the unpruned model is measured."""
        _ = self.unpruned  # measured once for all cuts
        made = self.keeping(self.options.share) if self.options.share else self.made(route, self.clock.next(share))
        reduced = *self.amounts.less(self.wanted), *self.unpruned.measured.left_out, *made.left_out
        made, seconds = replace(made, left_out=reduced), round(self.clock.used, 1)
        of_run: dict[str, Any] = {"amounts": self.amounts, "options": self.options, "compute": self.compute}
        of_run["notes"] = (*self.checked.notes, *(self.checked.repair_notes if made.repair else ()))
        shrunk = concluded(out, route, self.unpruned, made, seconds=seconds, **of_run)
        save(_noted(place), shrunk)
        how = settings(route, self.source.source, made, amounts=self.amounts, seed=self.compute.seed)
        texts = parse_sources(self.amounts.text), parse_sources(self.amounts.repair_text), route.healed_on
        places = {each.source for listed in texts for each in listed} | {route.name, *self.options.texts}
        dress(shrunk, made.checkpoint, how, places=places)
        rename_new(made.checkpoint.directory, place)

    @property
    def wanted(self) -> Amounts:
        """As much as is looked at where there is time enough."""
        options, how = self.options, self.route.choice.how
        most = replace(self.checked.wanted, probe_items=options.probe_items)
        if not how.repairs:
            most = replace(most, finalists=0)
        if not self.route.repair:
            most = replace(most, repair=0)
        return self.route.amounts(replace(most, documents=(options.limit or Amounts.documents) if options.tasks else 0))

    @cached_property
    def amounts(self) -> Amounts:
        """The amounts that fit into the minutes on this machine, now."""
        how = {"plan": repr(self.route.recipe.plan), "minutes": self.options.minutes, **self.sharing}
        fits = {"wanted": self.wanted, "most": self.checked.most}
        return self.stages.result("amounts", Amounts, lambda: self._written(self.fitting()), **fits, **how)

    def fitting(self) -> Amounts:
        """Choose amounts by the speed of this machine, as far as no text is to be written for it."""
        if math.isinf(self.clock.seconds):
            return self.wanted
        self.progress("measuring the speed of this machine", 0, 1)
        device, layers = pick_device(self.compute.device), self.source.anatomy.layers
        rate = forward_speed(self.source, dtype=arithmetic(self.compute.dtype, self.source, device), device=device)
        if not self.route.repeats:
            check_minutes(self.clock, rate, layers, self.cuts, sources=len(parse_sources(self.wanted.text)))
        wanted, seconds = replace(self.wanted, documents=self.checked.documents), self.clock.left / self.sharing["cuts"]
        fitting = amounts_for(seconds, wanted, rate=rate, layers=layers, most=self.checked.most, **self.sharing)
        if fitting.documents == wanted.documents:
            fitting = replace(fitting, documents=self.wanted.documents)  # a share of each task
        if not self.route.chooses_on_text:
            fitting = replace(fitting, windows=wanted.windows, text=wanted.text)
            if not self.route.repair:
                fitting = replace(fitting, length=wanted.length)
        return self.route.amounts(fitting)

    @property
    def sharing(self) -> dict[str, int]:
        """How many cuts, texts and tasks the minutes are for."""
        cuts = TRIALS if self.options.share else self.cuts
        return {"cuts": cuts, "texts": len(self.options.texts), "tasks": self.checked.tasks or 1}

    def _written(self, amounts: Amounts) -> Amounts:
        """Ask for as many windows as the model can write itself in time, where it is to write some."""
        chooses = self.route.chooses_on_text
        if self.route.repeats or not (chooses or self.route.repair):
            return amounts
        text, repaired = amounts.calibration_text, amounts.repair_windows
        how: dict[str, Any] = {"compute": self.compute, "progress": self.progress}
        if self.route.repair:  # of what is chosen on, it reads all
            text = replace(repaired, samples=max(amounts.windows if chooses else 0, int(repaired.samples)))
        most = int(text_in_time(self.source, text, self.clock.until(WRITING), **how).samples)
        sources = len(parse_sources(repaired.text))
        writes = chooses and any(each.source == OWN for each in parse_sources(amounts.text))
        windows = min(amounts.windows, max(most, LEVELS[-1].windows)) if writes else amounts.windows
        fewer = replace(amounts, windows=windows, repair=min(amounts.repair, max(most, JUDGING) * sources))
        return self.route.amounts(fewer)

    @cached_property
    def texts(self) -> Mapping[str, Tokens]:
        """The windows to measure on."""
        config = self.options.evaluation(self.amounts.judged)
        return config.read_texts(self.source.tokenizer(), self.compute.seed, at_least=1)

    @cached_property
    def unpruned(self) -> Unpruned:
        """The model as it is, measured."""
        return Unpruned(self.source, self.measured(self.source, "unpruned", self.clock.until(MEASURED_BY)))

    def measured(self, checkpoint: Checkpoint, name: str, until: Clock) -> Measured:
        """Measure a model as far as there is time; a cut by no more than the unpruned model."""
        base = None if checkpoint is self.source else self.unpruned.measured
        writing = self.clock.until(1.0 if base else PROBED_BY)
        measurement = Measurement(
            checkpoint,
            name,
            options=self.options,
            amounts=self.amounts,
            compute=self.compute,
            progress=self.progress,
            until=until,
            writing=writing,
            base=base,
            parts=self.checked.parts,
        )
        texts, tasks = {name: text.record() for name, text in self.texts.items()}, repr(measurement.tasks)
        known = {"of": checkpoint.identity, "texts": texts, "tasks": tasks, "items": self.amounts.probe_items}
        known |= {"documents": text_digest(str(self.options.data_dir))} if self.options.data_dir else {}
        known |= {"writes": bool(base.evaluation.probes)} if base else {}  # it is asked no more than that one was
        known |= {"minutes": self.options.minutes, "cuts": self.sharing["cuts"] if base else 1}
        return self.stages.result("measured", Measured, measurement.measured, lambda made: bool(made.left_out), **known)

    def made(self, route: Route, until: Clock) -> Candidate:
        """Make one cut: choose, repair, heal and measure it, and hold it against the unpruned model."""
        plan = self.chosen(route)
        measuring = SLOWER * self.unpruned.measured.seconds * len(plan.kept) / plan.layers
        until_healed = until.reserving(measuring + CONCLUDING)
        by_clock = route.repair and not route.repeats
        late = by_clock and self.decided(
            "unrepaired", lambda: until_healed.over or until.share > REPAIRED_BY, removed=list(plan.removed)
        )
        pruned = self.pruned(replace(route, repair=route.repair and not late), plan)
        speed = self.speed(pruned, until_healed)  # before healing, which has all that is left
        made, healing = self.healed(route, pruned, until_healed)
        measured = self.measured(made, "shortened", until)
        left_out = ("no repair",) * late + (NO_HEALING,) * (route.healing is not None and healing is None)
        left_out += ("speed not measured",) * reference.late(speed)
        repaired = pruned.record.get("repair") or {}
        return Candidate(made, plan, repaired, healing, measured, speed, (*left_out, *measured.left_out))

    def decided(self, what: str, decide: Callable[[], bool], **inputs: object) -> bool:
        """Return what was decided by the clock, now or before the run was killed."""
        known = {"minutes": self.options.minutes, "cuts": self.sharing["cuts"], **inputs}
        return self.stages.result(what, Decision, lambda: Decision(decide()), lambda made: made.yes, **known).yes

    def chosen(self, route: Route) -> Plan:
        """Choose the layers that go."""
        choice, text = route.choice, self.amounts.calibration_text
        if choice.how.repairs:
            choice = replace(choice, candidates=self.amounts.finalists)

        def choose_layers() -> Plan:
            self.progress("choosing layers", 0, 1)
            looked_at = text if route.chooses_on_text else None
            return select(self.source, choice, looked_at, compute=self.compute, progress=self.progress)

        known = {"choice": repr(choice), "text": asdict(text), "digest": text_digest(text.text)}
        return self.stages.result("plan", Plan, choose_layers, **known)

    def pruned(self, route: Route, plan: Plan) -> Checkpoint:
        """Make the cut, with kept layers refitted where the recipe says so."""
        text = self.amounts.repair_windows if route.repair else None

        def make(place: Path) -> None:
            self.progress("repairing and cutting", 0, 1)
            prune(self.source, plan, place, repair=text, compute=self.compute, progress=self.progress)

        known = {"text": asdict(text), "digest": text_digest(text.text)} if text else {}
        return self.stages.checkpoint("pruned", make, removed=list(plan.removed), **known)

    def healed(self, route: Route, pruned: Checkpoint, until: Clock) -> tuple[Checkpoint, Healing | None]:
        """Heal the cut on the data of the recipe until the time is over; as it is, where there is none for a step."""
        if not route.healing:
            return pruned, None
        task, clock = route.healing_of(self.source, self.compute), until if route.heals_by_clock else None
        known: dict[str, object] = {"of": pruned.identity, "data": text_digest(task.data.source), "task": repr(task)}
        known |= {"minutes": self.options.minutes, "cuts": self.sharing["cuts"]} if clock else {}
        if clock and self.decided("unhealed", lambda: clock.left <= LEAST_HEALING, **known):
            return pruned, None
        place = self.stages.place("healed", **known)
        if not place.exists():
            place.with_suffix(".json").unlink(missing_ok=True)  # its checkpoint has become an output

        def make() -> Healing:
            remove(place)  # of a run that was killed before it noted how it healed
            return heal(pruned, place, task, resume=True, progress=self.progress, clock=clock)

        healing = self.stages.result("healed", Healing, make, lambda made: not made.history.steps, **known)
        return (self.source.derived(place), healing) if healing.history.steps else (pruned, None)

    def speed(self, cut: Checkpoint, until: Clock) -> reference.Speed:
        """Measure the cut's speed beside the unpruned model's, which healing does not change."""

        def timed() -> reference.Speed:
            if until.share > COMPARED_BY:
                return reference.Speed(reason=reference.NO_TIME)
            return reference.speed(cut, self.source, self.compute, self.progress)

        known = {"of": cut.identity, "minutes": self.options.minutes, "cuts": self.sharing["cuts"]}
        return self.stages.result("speed", reference.Speed, timed, reference.late, **known)

    def keeping(self, share: float) -> Candidate:
        """Find the largest of at most TRIALS cuts that keeps a share of every measure; try as many as there is time for."""
        tried: dict[int, tuple[TriedCut, Candidate]] = {}
        choice, layers = self.route.choice, self.source.anatomy.layers
        most = min(layers - 1, layers - choice.keep_first - choice.keep_last)
        amount: int | None = min(first_amount(self.costs, share), most)
        for trial in range(TRIALS):
            if amount is None or (tried and self.decided("untried", self._late_to_try, layers=amount, tried=[*tried])):
                break
            made = self.made(self.route.dropping(str(amount)), self.clock.next(1 / (TRIALS - trial)))
            measure, kept_share = least(kept(self.unpruned.measured.evaluation, made.measured.evaluation))
            tried[amount] = TriedCut(amount, measure, kept_share), made
            shares = {count: cut.share.value for count, (cut, _) in tried.items()}
            amount = next_amount(shares, share, most=most)
        best = largest(shares, share)
        if best is None:
            raise self._nothing_keeps(tried[min(tried)][0])
        made, count = tried[best][1], len(tried)
        fewer = [f"cuts that are tried: {count} instead of {TRIALS}"] if amount and count < TRIALS else []
        return replace(made, left_out=(*made.left_out, *fewer), tried=tuple(cut for cut, _ in tried.values()))

    def _late_to_try(self) -> bool:
        return self.clock.left < self.clock.seconds / (TRIALS + 1)

    def _nothing_keeps(self, fewest: TriedCut) -> ShortstackError:
        expected = f"a cut that keeps {self.options.min_quality} by every measure"
        fix = f"ask for less, or allow more minutes; what was made stays in {self.stages.folder}"
        return ShortstackError(fewest, expected=expected, fix=fix, option="min_quality")

    @property
    def costs(self) -> tuple[float, ...]:
        """What each layer alone costs on the calibration text, in nats per token."""

        def scored() -> Costs:
            self.progress("scoring layers", 0, 1)
            few = replace(self.amounts.calibration_text, samples=LEVELS[-1].windows)
            tokens = calibration_tokens(self.source, few, compute=self.compute, progress=self.progress)
            scores = score(self.source, tokens, metrics=["ppl"], compute=self.compute, progress=self.progress)
            base = 0.0 if scores.kinds else scores.base_loss or 0.0  # of several kinds it is the ratio already
            return Costs(tuple(math.log(value) - base for value in scores.scores["ppl"]))

        text = self.amounts.text, self.amounts.length, text_digest(self.amounts.text)
        return self.stages.result("costs", Costs, scored, text=text).values


def _is_made(out: Path, place: Path) -> bool:
    """Say whether the cut that was made at a place has become the output; a folder of somebody else has not."""
    return (out / SHRUNK).is_file() and _noted(place).exists() and not place.exists()


def _noted(place: Path) -> Path:
    """Return where the result of a cut lies that is made at that place."""
    return place.with_suffix(".json")


@dataclass(frozen=True)
class Decision:
    """A yes-or-no answer of the clock, kept so that a run that goes on gives the same."""

    yes: bool


@dataclass(frozen=True)
class Costs:
    """The loss increase from removing each layer alone, in nats per token."""

    values: tuple[float, ...]
