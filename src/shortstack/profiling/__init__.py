"""How large and how fast a model is: parameters, operations, cache, and timed prefill and decoding.

Counts do not depend on the machine; speeds do.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
