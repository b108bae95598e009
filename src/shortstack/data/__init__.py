"""Texts, tokens and training examples, from files, the standard library or the hub.

A data source is one function in `sources`, or in `in_context` where a seeded program writes it. Nothing here computes
with a model.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
