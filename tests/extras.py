"""Modules that import a package of an extra, and the package."""

NEEDED = {"shortstack.evaluation.harness": "lm_eval"}
