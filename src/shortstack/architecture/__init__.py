"""Where an architecture keeps its layers, and which config fields follow them.

A quirk of an architecture is one entry in `config_fields`; `selfcheck` builds the cut model without weights and compares it
with the original's kept layers. Nothing here reads weights.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
