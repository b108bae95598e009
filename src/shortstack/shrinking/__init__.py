"""shrink(): the whole line in the minutes that somebody has, stage by stage, from a model's name to a healed checkpoint.

options -> line (a function a stage) -> card; clock says how much of the minutes a stage may take, stages keeps results.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
