"""The report of a study: what its store holds, as tables, figures and one page; nothing is measured again.

The records of the runs become results (a setting each, its seeds taken together), results become findings (what varies, and
groups that differ in one factor), findings become tables and figures, and those one page, Markdown or CSV. A new table is a
function in `tables` and an entry in TABLES, a new figure one in `figures`.

>>> write_report("runs", "report.html")  # doctest: +SKIP
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
