"""The shorter model beside others of the same size: quantised, narrower, sparser.

A baseline is one function in `baselines`, and one entry of BASELINES there.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
