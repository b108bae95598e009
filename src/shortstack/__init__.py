"""Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.

>>> import shortstack as ss
>>> model = ss.Checkpoint.open("demo")  # doctest: +SKIP
>>> scores = ss.score(model, ss.Tokens.read("pydoc", model.tokenizer()))  # doctest: +SKIP
>>> pruned = ss.prune(model, ss.plan(scores, drop="25%"), "pruned")  # doctest: +SKIP
>>> ss.heal(pruned, "healed", data="pydoc")  # doctest: +SKIP
>>> ss.evaluate(ss.Checkpoint.open("healed")).perplexity["pydoc"].value  # doctest: +SKIP

Names are imported when first used, so `import shortstack` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint as Checkpoint
    from shortstack.comparing import Comparison as Comparison
    from shortstack.comparing import Judging as Judging
    from shortstack.comparing import compare as compare
    from shortstack.contenders import Calibration as Calibration
    from shortstack.evaluation import Evaluation as Evaluation
    from shortstack.evaluation import Tasks as Tasks
    from shortstack.evaluation import compared as compared
    from shortstack.evaluation import evaluate as evaluate
    from shortstack.healing import Full as Full
    from shortstack.healing import Healing as Healing
    from shortstack.healing import Lora as Lora
    from shortstack.healing import Objective as Objective
    from shortstack.healing import Partial as Partial
    from shortstack.healing import Schedule as Schedule
    from shortstack.healing import Turns as Turns
    from shortstack.healing import heal as heal
    from shortstack.healing import heal_in_turns as heal_in_turns
    from shortstack.metrics import METRICS as METRICS
    from shortstack.planning import Plan as Plan
    from shortstack.planning import plan as plan
    from shortstack.profiling import Profile as Profile
    from shortstack.profiling import profile as profile
    from shortstack.pruning import prune as prune
    from shortstack.repairing import Repair as Repair
    from shortstack.repairing import repair as repair
    from shortstack.report import Report as Report
    from shortstack.report import write_report as write_report
    from shortstack.running import run_study as run_study
    from shortstack.scores import Scores as Scores
    from shortstack.scoring import score as score
    from shortstack.selecting import select as select
    from shortstack.shrinking import shrink as shrink
    from shortstack.sweeping import Sweep as Sweep
    from shortstack.sweeping import sweep as sweep
    from shortstack.tokens import Tokens as Tokens
    from shortstack.verification import Verification as Verification
    from shortstack.verification import verify as verify

_HOMES = {
    "METRICS": "metrics",
    "Calibration": "contenders",
    "Checkpoint": "checkpoint",
    "Comparison": "comparing",
    "Evaluation": "evaluation",
    "Full": "healing",
    "Healing": "healing",
    "Judging": "comparing",
    "Lora": "healing",
    "Objective": "healing",
    "Partial": "healing",
    "Plan": "planning",
    "Profile": "profiling",
    "Repair": "repairing",
    "Report": "report",
    "Schedule": "healing",
    "Scores": "scores",
    "Sweep": "sweeping",
    "Tasks": "evaluation",
    "Tokens": "tokens",
    "Turns": "healing",
    "Verification": "verification",
    "compare": "comparing",
    "compared": "evaluation",
    "evaluate": "evaluation",
    "heal": "healing",
    "heal_in_turns": "healing",
    "plan": "planning",
    "profile": "profiling",
    "prune": "pruning",
    "repair": "repairing",
    "run_study": "running",
    "score": "scoring",
    "select": "selecting",
    "shrink": "shrinking",
    "sweep": "sweeping",
    "verify": "verification",
    "write_report": "report",
}
__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shortstack' has no attribute {name!r}")
    return getattr(import_module(f"shortstack.{_HOMES[name]}"), name)
