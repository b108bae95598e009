"""The names of the demo model and of a checkpoint's files: which are its own, are downloaded, and go into an output."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONFIG = "config.json"
RECORD = "shortstack.json"
CARD = "README.md"
SHRUNK = "shrink.json"  # of a shrink, about the checkpoint that it stands beside
TOKENIZER_CONFIG = "tokenizer_config.json"
NAMED_FILES = ("configuration_files", "fast_tokenizer_files")  # transformers reads one of them in place of the usual
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTISER = re.compile(r"quant\w*\.json$")  # a second place of a quantiser's settings, which may name modules
ADAPTER = "adapter_config.json"  # of PEFT
NAMED_WEIGHTS = "transformers_weights"  # the field of config.json that names the file of the weights
TEMPLATES = "additional_chat_templates"  # where transformers keeps a tokenizer's further, named templates
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
CODE = (".py", ".pkl", ".pickle", *PICKLED)  # which may run when it is loaded
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# By the names that transformers' tokenizers ask for.
VOCABULARIES = {
    *["bpe.codes", "dict.txt", "entity_vocab.json", "merges.txt", "prophetnet.tokenizer", "sentencepiece.bpe.model"],
    *[
        "sentencepiece.model",
        "source.spm",
        "spiece.model",
        "spm.model",
        "spm_char.model",
        "target.spm",
        "target_vocab.json",
    ],
    *["tekken.json", "tiktoken.model", "tokenizer.json", "tokenizer.model", "vocab-src.json", "vocab-tgt.json"],
    *["vocab.json", "vocab.txt"],
}
# All that loaders ask for beside config and weights.
BESIDE = VOCABULARIES | {
    *f"{TOKENIZER_CONFIG} added_tokens.json audio_tokenizer_config.json byte_maps.json emoji.json".split(),
    *["chat_template.jinja", "chat_template.json", "generation_config.json", "normalizer.json"],
    *["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"],
    *["hf_quant_config.json", "quant_config.json", "quantize_config.json", "special_tokens_map.json"],
    *["word_pronunciation.json", "word_shape.json"],
}
LEGAL = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|USE_POLICY)([-_][\w-]+(\.\d+)?)?(\.(txt|md|rst))?", re.IGNORECASE)
DOWNLOADED = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.vocab", "merges.*", "bpe.*", "*.jinja", "*.py"),
    *("LICEN[CS]E*", "COPYING*", "NOTICE*", "USE_POLICY*"),
    CARD,  # which says the licence
)
# Other forms of the same weights, which are not read; * matches / too.
OTHER_FORMS = ("*/*.safetensors", "consolidated*.safetensors")


def is_demo(model: str) -> bool:
    """Say whether a name stands for the packaged model; a file or folder of that name comes first."""
    return model == "demo" and not os.path.exists(model)


def is_own_name(name: Any) -> bool:
    """Say whether a name that a file tells is that of a file beside it, on every system: it leads nowhere else.

    >>> [is_own_name(name) for name in ("model.safetensors", "../x", "/etc/passwd", "C:x", "..", None)]
    [True, False, False, False, False, False]
    """
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[\x00-\x1f/\\:]", name)


def equal_elsewhere(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that are one file where case or Unicode's forms are not told apart; None without any.

    >>> equal_elsewhere(["config.json", "a", "CONFIG.json"]), equal_elsewhere(["a", "b", "a"])
    (('config.json', 'CONFIG.json'), None)
    """
    seen = dict[str, str]()
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            return other, name
    return None
