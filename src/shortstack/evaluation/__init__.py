"""Evaluation: perplexity on text, and the tasks of lm-evaluation-harness."""

from shortstack.evaluation.asking import Tasks, amounts, ask, load_harness
from shortstack.evaluation.evaluator import Evaluation, compared, evaluate
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.evaluation.results import Amount, TaskResult

__all__ = [
    "Amount",
    "Evaluation",
    "Perplexity",
    "TaskResult",
    "Tasks",
    "amounts",
    "ask",
    "compared",
    "evaluate",
    "load_harness",
    "measure",
]
