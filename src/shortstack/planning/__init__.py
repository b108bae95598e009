"""Which layers go: sets of layers, plans from scores, plans by measuring, and cuts that an architecture can express.

A strategy is one function here. What makes a plan out of scores is pure and knows no torch.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
