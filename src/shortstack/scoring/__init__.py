"""Scores of layers by every metric, from one walk, and the loss at every depth.

A metric is one function and one entry in `metrics`. Low scores mean: remove first.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
