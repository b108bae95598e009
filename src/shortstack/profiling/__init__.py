"""How large and how fast a model is: parameters, operations, cache, and timed prefill and decoding.

`counts` does not depend on the machine; `speed` does.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
