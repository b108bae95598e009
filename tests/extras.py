"""Modules that import a package of an extra, and the package."""

NEEDED = {f"shortstack.evaluation.{name}": "lm_eval" for name in ("harness", "harness_model")}
