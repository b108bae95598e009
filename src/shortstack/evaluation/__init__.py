"""Evaluation: perplexity on text, and the tasks of lm-evaluation-harness."""

from shortstack.evaluation.asking import Tasks, ask, harness
from shortstack.evaluation.evaluator import Evaluation, compared, evaluate
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.evaluation.results import TaskResult

__all__ = ["Evaluation", "Perplexity", "TaskResult", "Tasks", "ask", "compared", "evaluate", "harness", "measure"]
