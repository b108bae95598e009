"""Every table of a report, each a pure function of what was measured; one whose factor does not vary is left out."""

from __future__ import annotations

from shortstack.report import contests, surveys
from shortstack.report.groups import Findings
from shortstack.report.results import results
from shortstack.report.runs import Runs
from shortstack.report.table import Table


def findings(runs: Runs) -> Findings:
    """What the trials measured, ready for tables and figures."""
    return Findings.of(runs, results(runs))


def all_tables(found: Findings) -> list[Table]:
    """Every table that the runs have something for, in the order of the report."""
    made = [
        contests.metrics(found),
        contests.healing(found),
        contests.strategies(found),
        contests.calibrations(found),
        contests.healing_data(found),
        contests.repairs(found),
        surveys.refits(found),
        surveys.probes(found),
        surveys.sizes(found),
        surveys.costs(found.runs),
        surveys.every_setting(found),
    ]
    return [table for table in made if table]
