"""Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.

>>> import shortstack as ss
>>> model = ss.Checkpoint.open("demo")  # doctest: +SKIP
>>> scores = ss.score(model, ss.Tokens.read("pydoc", model.tokenizer()))  # doctest: +SKIP
>>> pruned = ss.prune(model, ss.plan(scores, drop="25%"), "pruned")  # doctest: +SKIP
>>> ss.heal(pruned, "healed", "pydoc")  # doctest: +SKIP
>>> ss.evaluate(ss.Checkpoint.open("healed")).perplexity["pydoc"].value  # doctest: +SKIP

Names are imported when first used, so `import shortstack` itself is quick.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
