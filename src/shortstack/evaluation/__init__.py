"""How good a model is: perplexity, tasks, probes of writing, signs of degeneration, and paired tests.

A suite of tasks is one entry in `suites`, a probe one entry in `probes`. lm-evaluation-harness is imported in `harness`
alone.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
