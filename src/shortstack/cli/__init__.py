"""The command line: each verb parses, calls one public function, prints its result, and names the next step.

stdout carries the result (`--json` for machines), stderr the progress. Exit codes: 0 done, 2 bad usage or input, 1 failure.
Nothing heavy is imported before a verb runs: `shortstack --help` knows no torch. A verb is one file, its table beside it.
"""

# isort: off
# in the order of --help
from shortstack.cli import score, sweep, plan
from shortstack.cli import prune, repair, verify
from shortstack.cli import heal
from shortstack.cli import evaluate
from shortstack.cli import shrink, study, watch
from shortstack.cli import profile, compare
from shortstack.cli import report, export
from shortstack.cli import demo, ls, cache
from shortstack.cli.app import app, main

__all__ = [
    "app",
    "cache",
    "compare",
    "demo",
    "evaluate",
    "export",
    "heal",
    "ls",
    "main",
    "plan",
    "profile",
    "prune",
    "repair",
    "report",
    "score",
    "shrink",
    "study",
    "sweep",
    "verify",
    "watch",
]
