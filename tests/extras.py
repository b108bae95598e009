"""Modules that import a package of an extra, and the package."""

HARNESS = ("harness", "harness_model", "task_amount")
NEEDED = {**{f"shortstack.evaluation.{name}": "lm_eval" for name in HARNESS}, "shortstack.evaluation.vllm": "vllm"}
