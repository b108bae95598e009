"""shrink(): the whole line in one call, a function for each stage; the result is one folder.

    check -> measure the base model -> select -> prune with repair -> heal -> measure -> conclude

Every stage's result lies in `<out>.partial` until the end (stages.py), so that a killed run goes on.
"""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Text
from shortstack.data.sources import OWN
from shortstack.decoder import with_own_text
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import ShortstackError, TimeUpError
from shortstack.healing import Healing, heal
from shortstack.healing import least_seconds as least_healing
from shortstack.machine.cache import content_key
from shortstack.machine.clock import Clock
from shortstack.machine.device import AUTO, Compute, pick_device
from shortstack.machine.files import check_new, remove, rename_new
from shortstack.machine.formats import option_words
from shortstack.machine.locks import OutputLock
from shortstack.machine.memory import Memory
from shortstack.machine.options import changed_options, given
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Plan, select
from shortstack.profiling.speed import forward_speed
from shortstack.pruning import prune
from shortstack.scoring import score
from shortstack.shrinking.budget import WRITING, Budget, check_minutes, fit, least_seconds
from shortstack.shrinking.card import write_card
from shortstack.shrinking.checks import Checked, check, needed_disk, needed_memory
from shortstack.shrinking.measuring import configs, measure, side_by_side, time_both
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import Candidate, Measured, ShrinkResult, Speed, judge
from shortstack.shrinking.retention import TRIALS, TriedCut, first_amount, lowest, next_amount, retention
from shortstack.shrinking.settings import RECIPE, Settings, given_plan
from shortstack.shrinking.stages import Stages, TimedProgress, open_stages

SLOWER = 1.6  # times what measuring the base model took, by its share of layers, measuring a pruned model may take
TIMED_BY = REPAIRED_BY = 0.7  # shares of the time after which a cut is not timed, not repaired
CONCLUDING = 6.0  # seconds for card and report
NO_TIME = "no time was left"


def shrink(
    model: Model,
    out: str | Path,
    options: ShrinkOptions | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = silent,
    began: float | None = None,
) -> ShrinkResult:
    """Choose layers, prune, repair, heal and measure by a recipe; the new checkpoint directory is `out`.

    It ends within options.minutes: with little time there is less of everything (ShrinkResult.budget, skipped). Killed and
    called again with the same options it goes on in the time that is left. began: when the time began, by time.monotonic().

    >>> shrink("demo", "small", ShrinkOptions(drop="25%", data=("my.jsonl",)))  # doctest: +SKIP

    Raises:
        OutputError: `out` exists, lies in the model, another process makes it, or the disk has no room.
        InputError: a recipe without data, options that exclude each other, too few minutes, too little memory.
        PlanError: no such number of layers can be removed.
        DataError: data or texts cannot be read, or are too few.
        ShortstackError: no cut keeps min_quality.
    """
    began = time.monotonic() if began is None else began
    options, out, base = options or ShrinkOptions(), Path(out), Checkpoint.of(model)
    settings = Settings.of(options)
    check_new(out)
    with OutputLock(out):
        checked = check(base, out, settings, options, compute)
        run = {
            "options": repr(options),
            "recipe": repr(settings.recipe),
            "data": [*checked.digests, settings.healing and settings.healing.text.digest],
            "compute": asdict(compute),
        }
        key = content_key("shrink", model=base.identity, **run)
        with open_stages(out, base, key, settings.seconds(options), began) as (stages, clock):
            timed = TimedProgress(progress, clock, stages)
            shrinker = Shrinker(base, settings, options, compute, checked, clock, stages, timed)
            result, made = shrinker.run(out)
            write_card(result, made.checkpoint, shrinker.trial(made))
            rename_new(made.checkpoint.directory, out)
    return result


@dataclass(frozen=True)
class Shrinker:
    """Runs the stages of shrink() on one model."""

    base: Checkpoint
    settings: Settings
    options: ShrinkOptions
    compute: Compute
    checked: Checked
    clock: Clock
    stages: Stages
    progress: Progress

    def run(self, out: Path) -> tuple[ShrinkResult, Candidate]:
        """Run all stages, and conclude."""
        base = self.base_measured  # first: the time for measuring the pruned model is what this one took
        tried: tuple[TriedCut, ...] = ()
        if self.options.share:
            made, tried = self.search(self.options.share)
        else:
            made = self.make(self.settings, self.clock)
        answers = side_by_side(base.answers, made.measured.answers)
        evaluation = replace(made.measured.evaluation, model=str(out))
        recipe = self.settings.repeating(self.budget, self._texts[0], self._texts[1], made)
        return ShrinkResult(
            output=out,
            verdict=judge(base.evaluation, evaluation, answers),
            plan=made.plan,
            repair=made.checkpoint.record.get("repair") or {},
            healing=made.healing and replace(made.healing, output=out),
            base=base.evaluation,
            pruned=evaluation,
            answers=answers,
            speed=made.speed,
            budget=self.budget,
            wanted=self.checked.wanted,
            skipped=made.skipped,
            tried=tried,
            notes=self.checked.notes,
            seconds=round(self.clock.used, 1),
            recipe=recipe,
            command=self._command(out),
        ), made

    @cached_property
    def speed(self) -> float:
        """Forward speed of the base model in tokens a second, measured once."""
        self.progress("measuring the speed of this machine", 0, 1)
        device = pick_device(self.compute.device)
        return forward_speed(self.base, dtype=arithmetic(self.compute.dtype, self.base, device), device=device)

    @cached_property
    def budget(self) -> Budget:
        """The amounts that fit into the time."""
        return self.stages.result("budget", Budget, self._fit)

    def _fit(self) -> Budget:
        wanted, load, layers = self.checked.wanted, self.checked.load, self.base.anatomy.layers
        if math.isinf(self.clock.seconds):
            return wanted
        check_minutes(self.clock, least_seconds(wanted, speed=self.speed, layers=layers, load=load))
        fitting: dict[str, Any] = asdict(fit(wanted, self.clock.left, speed=self.speed, layers=layers, load=load))
        return Budget(**{**fitting, **self.settings.stated})

    @cached_property
    def base_measured(self) -> Measured:
        return self.stages.result("base", Measured, lambda: self._measure(self.base, None))

    def _measure(self, checkpoint: Checkpoint, until: Clock | None) -> Measured:
        what = [*configs(self.options, self.budget, self.checked.subtasks)]
        return measure(checkpoint, what, compute=self.compute, progress=self.progress, until=until)

    def make(self, settings: Settings, until: Clock, trial: str = "") -> Candidate:
        """Select, prune, repair, time, heal and measure one cut. trial: names its stages where several are tried."""
        plan = self.stages.result(f"plan{trial}", Plan, lambda: self._select(settings))
        measuring = SLOWER * self.base_measured.seconds * len(plan.kept) / plan.layers
        until_healed = until.reserving(measuring + CONCLUDING)
        pruned = self.stages.checkpoint(f"pruned{trial}", lambda place: self._prune(plan, place, until_healed))
        speed = self.stages.result(f"speed{trial}", Speed, lambda: self._time(pruned, until_healed))
        healed, healing = self._heal(pruned, trial, until_healed)
        measured = self.stages.result(f"measured{trial}", Measured, lambda: self._measure(healed, until))
        skipped = ["repair"] * (settings.repair and not pruned.record.get("repair"))
        skipped += ["timing"] * (speed.reason == NO_TIME) + ["healing"] * bool(settings.healing and not healing)
        return Candidate(healed, plan, healing, measured, speed, (*skipped, *measured.skipped))

    def _select(self, settings: Settings) -> Plan:
        selection = settings.selection
        if selection.how.repairs:
            selection = replace(selection, candidates=self.budget.candidates)
        text = self._calibration() if selection.needs_text else None
        return select(self.base, selection, text, compute=self.compute, progress=self.progress)

    @property
    def _texts(self) -> tuple[Text, Text | None]:
        """The texts to choose and to repair on; without what the base model writes where there is no time for that."""
        without = {} if self.budget.own_text else {OWN: None}
        calibration, repair = self.checked.calibration.replacing(without), self.checked.repair
        return calibration, repair and repair.replacing(without)

    def _calibration(self) -> Text:
        text = replace(self._texts[0], samples=self.budget.windows, length=self.budget.length)
        return self._written(text, self.budget.windows)

    def _prune(self, plan: Plan, place: Path, until: Clock) -> None:
        late = self.clock.left < math.inf and (until.over or until.share > REPAIRED_BY)
        text = None
        if (repair := self._texts[1]) and not late:
            text = replace(repair, length=self.budget.length).of_all(self.budget.repair_windows)
            text = self._written(text, int(text.samples or 0))
        prune(self.base, plan, place, repair=text, compute=self.compute, progress=self.progress)

    def _written(self, text: Text, windows: int) -> Text:
        """Return a text with the file of what the base model writes in the place of `self`, as far as there is time."""
        deadline = self.clock.until(WRITING) if self.clock.seconds < math.inf else None
        how: dict[str, Any] = {"compute": self.compute, "progress": self.progress}
        return with_own_text(text, self.base, windows=windows, deadline=deadline, **how)

    def _time(self, pruned: Checkpoint, until: Clock) -> Speed:
        """Time both models; healing does not change it, and has all the time that is left."""
        if until.share > TIMED_BY:
            return Speed(reason=NO_TIME)
        return time_both(pruned, self.base, self.compute, self.progress)

    def _heal(self, pruned: Checkpoint, trial: str, until: Clock) -> tuple[Checkpoint, Healing | None]:
        """Heal until the time is over; the pruned model stays as it is where no healing could finish."""
        config = self.settings.healing_of(self.compute)
        if config is None:
            return pruned, None
        clock = until if self.settings.heals_by_clock and until.seconds < math.inf else None
        place = self.stages.folder / f"healed{trial}"
        base, speed = self.base if config.needs_base else None, self.speed if clock else None
        if clock and clock.left < least_healing(pruned, config, base=base, speed=self.speed):
            return pruned, None

        def healed() -> Healing:
            remove(place)  # of a run that was killed before it noted how it healed
            return heal(pruned, place, config, base=base, clock=clock, speed=speed, progress=self.progress)

        try:
            healing = self.stages.result(f"healing{trial}", Healing, healed)
        except TimeUpError:  # the machine became slower
            return pruned, None
        return self.base.derived(place), healing

    def search(self, share: float) -> tuple[Candidate, tuple[TriedCut, ...]]:
        """Find the largest of at most TRIALS cuts that keeps a share of every measure."""
        tried: dict[int, tuple[TriedCut, Candidate]] = {}
        selection, layers = self.settings.selection, self.base.anatomy.layers
        most = min(layers - 1, layers - selection.keep_first - selection.keep_last)
        amount: int | None = min(first_amount(self.costs, share), most)
        for trial in range(TRIALS):
            if amount is None or (tried and self.clock.left < self.clock.seconds / (TRIALS + 1)):
                break
            part = self.clock.next(1 / (TRIALS - trial)) if self.clock.seconds < math.inf else self.clock
            made = self.make(self.settings.dropping(amount), part, trial=f"-{amount}")
            measure, kept = lowest(retention(self.base_measured.evaluation, made.measured.evaluation))
            tried[amount] = TriedCut(amount, measure, kept), made
            amount = next_amount({count: cut.kept.value for count, (cut, _) in tried.items()}, share, most=most)
        kept_enough = [count for count, (cut, _) in tried.items() if cut.kept.value >= share]
        if not kept_enough:
            cut = tried[min(tried)][0]
            message = (
                f"without {cut.layers} layers {cut.kept} of the {cut.measure} is kept; ask for less, or more minutes"
            )
            raise ShortstackError(message, option="min_quality")
        return tried[max(kept_enough)][1], tuple(cut for cut, _ in tried.values())

    @cached_property
    def costs(self) -> list[float]:
        """Loss increase from removing each layer alone, in nats per token."""
        text = replace(self._calibration(), samples=4)
        scores = score(self.base, text, metrics=["ppl"], compute=self.compute, progress=self.progress)
        base = 0.0 if scores.kinds else scores.base_loss or 0.0  # of several texts it is the ratio already
        return [math.log(value) - base for value in scores.scores["ppl"]]

    def trial(self, made: Candidate) -> dict[str, Any]:
        """Return how the pruned model was made, as the settings of a study's trial."""
        calibration, repair = self._texts
        repaired = repair if made.checkpoint.record.get("repair") else None
        windows, length = self.budget.windows, self.budget.length
        heal = given(self.settings.recipe.heal) if made.healing else {}
        return {
            "model": self.base.source,
            **given_plan(self.settings.recipe),
            "drop": str(len(made.plan.removed)),
            "calibration": {"source": calibration.name, "samples": windows, "length": length},
            "repair": repaired and {"source": repaired.name, "samples": self.budget.repair_windows, "length": length},
            "heal": heal and {"name": self.options.recipe, **heal, "data": self.settings.data_name},
            "seed": self.compute.seed,
        }

    def _command(self, out: Path) -> str:
        """Return the command that repeats the shrink with its own recipe, without a time limit."""
        changed = {**changed_options(self.options), **changed_options(self.compute)}
        for name in ("minutes", "min_quality", "calibration_data", "num_samples", "data"):
            changed.pop(name, None)
        source = self.base
        changed |= {"recipe": str(out / RECIPE)}
        changed |= {"trust_remote_code": True} if source.trust_remote_code else {}
        changed |= {"revision": source.revision} if source.revision and not Path(source.source).exists() else {}
        return shlex.join(["shortstack", "shrink", source.source, *option_words(changed), "-o", f"{out}-again"])


def preview(
    model: Model, out: Path, options: ShrinkOptions, *, compute: Compute = AUTO
) -> tuple[Budget, Memory, int, float]:
    """Make every check of shrink(), and measure the speed of this machine; nothing is chosen or written.

    Returns the amounts that fit into the time, their memory, bytes on disk, and the time limit in seconds.
    """
    base, settings = Checkpoint.of(model), Settings.of(options)
    check_new(out)
    checked, seconds = check(base, out, settings, options, compute), settings.seconds(options)
    shrinker = Shrinker(base, settings, options, compute, checked, Clock(seconds), Stages(out, base), silent)
    memory = needed_memory(base, settings, checked, compute)
    return shrinker._fit(), memory, needed_disk(base, checked), seconds
