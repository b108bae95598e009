"""The command line: each verb parses, calls one public function, prints its result, and names the next step.

stdout carries the result (`--json` for machines), stderr the progress. Exit codes: 0 done, 2 bad usage or input, 1 failure.
Nothing heavy is imported before a verb runs: `shortstack --help` knows no torch.
"""

# isort: off
# in the order of --help
from shortstack.cli import choosing
from shortstack.cli import cutting
from shortstack.cli import training
from shortstack.cli import judging
from shortstack.cli import studying
from shortstack.cli import weighing
from shortstack.cli import reporting
from shortstack.cli import listing
from shortstack.cli.application import app, main

__all__ = ["app", "choosing", "cutting", "judging", "listing", "main", "reporting", "studying", "training", "weighing"]
