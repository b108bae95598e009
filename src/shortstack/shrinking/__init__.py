"""shrink(): the whole line within a time limit, from a model's name to a healed checkpoint with its card and report.

options, settings -> checks -> line (a function for each stage) -> card; budget says what fits into the time, stages keeps
results of an unfinished run.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
