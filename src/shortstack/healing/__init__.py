"""Training after the cut: which part of a model trains, on what, to which objective, and for how long.

A method is one file here and one entry in `methods`. There is one training loop, in `training`; what is frozen is computed
once and kept.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
