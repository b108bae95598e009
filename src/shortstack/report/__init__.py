"""The report of a study: what its store holds, as tables, figures and one page; nothing is measured again.

A table is one function in `tables` and one entry in its catalogue.

>>> write_report("runs", "report.html")  # doctest: +SKIP
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
