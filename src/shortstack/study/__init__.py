"""A grid of trials over the whole line, resumable and shared out to workers.

grid (the file) -> trial -> graph (what trials share) -> step_types (each type of step) -> runner (hands steps to workers).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
