"""Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.

>>> import shortstack as ss
>>> model = ss.Checkpoint.open("demo")  # doctest: +SKIP
>>> plan = ss.select_layers(model, metric="ppl", drop="25%")  # doctest: +SKIP
>>> pruned = ss.prune(model, plan, "pruned")  # doctest: +SKIP
>>> config = ss.HealingConfig({"self": 1, "pydoc": 1, "copying": 0.5}, loss="distill", max_samples=200)  # doctest: +SKIP
>>> ss.heal(pruned, "healed", config, base=model)  # doctest: +SKIP
>>> ss.evaluate(ss.Checkpoint.open("healed")).perplexity["pydoc"].value  # doctest: +SKIP

Names are imported when first used, so `import shortstack` itself is quick.
"""

from typing import Any

from lazy_loader import attach_stub

_lazily, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used; read the version from what is installed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("shortstack")
    return _lazily(name)
