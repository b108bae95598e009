"""Storage of a study: its trials and steps, and the artefacts of each step.

Whatever stands in a store was written whole. `records` reads it back for reports.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
