"""Every table of a report, each a pure function of what was measured; one whose factor does not vary is left out."""

from __future__ import annotations

from shortstack.report.findings import Findings
from shortstack.report.table import Table
from shortstack.report.tables.factors import calibrations, healing, healing_data, metrics, repairs, strategies
from shortstack.report.tables.overviews import costs, every_setting, probes, refits, sizes


def all_tables(found: Findings) -> list[Table]:
    """Every table that the runs have something for, in the order of the report."""
    made = [
        metrics(found),
        healing(found),
        strategies(found),
        calibrations(found),
        healing_data(found),
        repairs(found),
        refits(found),
        probes(found),
        sizes(found),
        costs(found.runs),
        every_setting(found),
    ]
    return [table for table in made if table]
