"""How good a model is: perplexity, tasks, generation probes, signs of degeneration, and paired tests.

What is measured is said by the dataclasses in `options`. A suite of tasks is one entry in `suites`, a probe one entry in
`probes`. lm-evaluation-harness is imported in `harness`, and nowhere else.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
