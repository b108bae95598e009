"""The command line: each verb parses, calls one public function, prints its result, and names the next step.

stdout carries the result (`--json` for machines), stderr the progress. Exit codes: 0 done, 2 bad usage or input, 1 failure.
Nothing heavy is imported before a verb runs, and no verb before it is asked for: `shortstack --help` knows no torch. A verb
is one file, its table beside it, and its line in `verbs`.
"""

import os

# Before torch is imported. Its threads wait for each other spinning, which takes cores from other work and waits for them
# in turn: passive ones are 1.6 times as fast beside a busy process for each core, and .82 to .90 times as fast alone
# (benchmarks/README.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from shortstack.cli.app import main

__all__ = ["main"]
