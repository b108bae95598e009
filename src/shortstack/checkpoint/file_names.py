"""The names of the demo model and of a checkpoint's files: which are downloaded, and which an output takes along."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIG = "config.json"
RECORD = "shortstack.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTISER = re.compile(r"quant\w*\.json$")  # a second place of a quantiser's settings, which may name modules
ADAPTER = "adapter_config.json"  # of PEFT
NAMED_WEIGHTS = "transformers_weights"  # the field of config.json that names the file of the weights
TEMPLATES = "additional_chat_templates"  # where transformers keeps a tokenizer's further, named templates
TOKENIZER = re.compile(r"^(tokenizer|vocab|spiece|sentencepiece|merges|bpe)\b.*|\.(model|tiktoken|vocab)$")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LEFTOVERS = {  # of a training, or of weights in another form
    ADAPTER,
    "params.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
}
LEGAL = ("LICENSE", "NOTICE", "USE_POLICY")
DOWNLOADED = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.vocab", "merges.*", "bpe.*", "*.jinja", "*.py"),
    *(f"{name}*" for name in LEGAL),
)


def is_demo(model: str) -> bool:
    """Whether a name stands for the packaged model; a file or folder of that name comes first."""
    return model == "demo" and not os.path.exists(model)


def is_carried_along(path: Path, *, code: bool) -> bool:
    """Whether an output has a copy of the file: it goes with any weights of the model. code: Python files, too."""
    if path.name in {CONFIG, RECORD, "README.md", *LEFTOVERS}:
        return False
    if path.name.startswith(".") or path.name.endswith(".index.json"):
        return False
    if path.suffix == ".py":
        return code
    return (
        path.suffix in {".json", ".txt", ".jinja"} or bool(TOKENIZER.search(path.name)) or path.name.startswith(LEGAL)
    )
