"""Checkpoints on disk: found, read by headers and byte ranges, and written whole or not at all.

An export format is one file here. A checkpoint's source is never modified, and nothing is unpickled. What shortstack.json
says is made by `record` and checked by `file_names`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
