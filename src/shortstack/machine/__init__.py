"""The platform: files, memory, devices, the cache, progress, and how numbers are written.

Nothing here knows what a model is. A number format, a way to report progress or a guard for a resource belongs here;
anything that opens a checkpoint does not.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
