"""Charts as SVG, drawn the same in the report, in a notebook and in a file: lines, maps of layers, bars, stacks.

Nothing here knows what a model is. A way to draw numbers belongs here; which numbers are drawn is said by who has them.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
