"""A grid of trials over the whole line, resumable and shared out to workers; recipes; and shrink, one trial of it.

What a kind of step does stands in `steps`. A recipe is a file in `presets`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
