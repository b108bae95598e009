"""Every table of a report, in its order: a new table is one entry here, and a FactorTable or a function that makes it."""

from __future__ import annotations

from shortstack.report.findings import Findings
from shortstack.report.table import Table
from shortstack.report.tables.factors import (
    CALIBRATIONS,
    HEALING_DATA,
    HEALING_METHODS,
    METRICS,
    REPAIRS,
    STRATEGIES,
)
from shortstack.report.tables.overviews import costs, every_setting, probes, refits, sizes

CATALOGUE = (
    METRICS,
    HEALING_METHODS,
    STRATEGIES,
    CALIBRATIONS,
    HEALING_DATA,
    REPAIRS,
    refits,
    probes,
    sizes,
    costs,
    every_setting,
)


def all_tables(findings: Findings) -> list[Table]:
    """Every table that the runs have something for; one whose factor does not vary is left out."""
    return [table for make in CATALOGUE if (table := make(findings))]
