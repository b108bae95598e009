"""The tables of a report: a function or an entry each, and the catalogue that lists them."""

from __future__ import annotations

from shortstack.machine.tables import Table
from shortstack.report.findings import Findings
from shortstack.report.tables.factors import FACTOR_TABLES
from shortstack.report.tables.overviews import every_setting, probes, sizes

CATALOGUE = (*FACTOR_TABLES, probes, sizes, every_setting)


def all_tables(findings: Findings) -> list[Table]:
    """Every table that the runs have something for; one whose factor does not vary is left out."""
    return [table for make in CATALOGUE if (table := make(findings))]
