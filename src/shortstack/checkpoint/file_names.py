"""The names of the demo model and of a checkpoint's files: which are its own, are downloaded, and go into an output."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shortstack.errors import CheckpointError

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
TOKENIZER = re.compile(r"^(tokenizer|vocab|spiece|sentencepiece|merges|bpe)\b.*|\.(model|tiktoken|vocab)$")
# Settings, tokens and words by their files' names, as loaders have them.
SETTINGS = re.compile(
    r"(config|quant|tokenizer|vocab|special_tokens|added_tokens|chat_template|tekken|normalizer|modules|emoji|encoder"
    r"|byte_maps|word_shape|word_pronunciation)[^/]*\.json$|(vocab|merges|tokenizer|dict|SYSTEM_PROMPT)[^/]*\.txt$"
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
CODE = (".py", ".pkl", ".pickle", *PICKLED)  # which may run when it is loaded
LEFTOVERS = {  # of a training, of a shrink, or of weights in another form
    ADAPTER,
    "params.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    SHRUNK,
}
READ = {".txt", ".json", ".jsonl", ".gguf", ".yaml", ".yml"}  # what texts, models and recipes are in, beside folders
LEGAL = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")
DOWNLOADED = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.vocab", "merges.*", "bpe.*", "*.jinja", "*.py"),
    *(f"{name}*" for name in LEGAL),
    CARD,  # which says the licence
)
# Other forms of the same weights, which are not read; * matches / too.
OTHER_FORMS = ("*/*.safetensors", "consolidated*.safetensors")


DISTINCT = "file names that differ by more than case"


def is_demo(model: str) -> bool:
    """Say whether a name stands for the packaged model; a file or folder of that name comes first."""
    return model == "demo" and not os.path.exists(model)


def place_name(place: str) -> str:
    """Return the name of a file or folder without its place; what the hub calls so, or comes along, as it is.

    >>> [place_name(place) for place in ("./model/", "C:/me/model", "~/chats.jsonl", "org/set-1.5", "self")]
    ['model', 'model', 'chats.jsonl', 'org/set-1.5', 'self']
    """
    path = place.startswith((".", "~", "/")) or "\\" in place or place.count("/") > 1
    if not path and Path(place).suffix not in READ:
        return place
    return re.split(r"[/\\]+", place.rstrip("/\\"))[-1]


def source_names(data: str | Mapping[str, Any], *, weighted: bool = False) -> list[str]:
    """List the sources of a text, given by name or as weights by name; a file by its name alone.

    >>> source_names({"self": 1, "/home/me/chats.jsonl": 0.5}), source_names({"self": 2.0, "org/set": 1}, weighted=True)
    (['self', 'chats.jsonl'], ['self=2', 'org/set'])
    """
    weights = {data: 1} if isinstance(data, str) else {str(name): weight for name, weight in data.items()}
    words = {name: f"={weight}".removesuffix(".0") * (weighted and weight != 1) for name, weight in weights.items()}
    return [f"{place_name(name)}{weight}" for name, weight in words.items()]


def is_carried_along(path: Path, *, code: bool) -> bool:
    """Say whether an output has a copy of the file: it goes with any weights of the model. code: Python files, too.

    Nothing else that lies beside them is copied, such as notes, since outputs are uploaded.
    """
    if path.name in {CONFIG, RECORD, CARD, *LEFTOVERS}:
        return False
    if path.name.startswith(".") or path.name.endswith(".index.json"):
        return False
    if path.suffix.lower() in CODE:
        return code and path.suffix == ".py"
    named = path.suffix not in {".json", ".txt"} and TOKENIZER.search(path.name)
    return bool(named or SETTINGS.search(path.name)) or path.suffix == ".jinja" or path.name.upper().startswith(LEGAL)


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


def leads_out(path: Path, directory: Path) -> bool:
    """Say whether a file in a folder is a link to one elsewhere; a snapshot in the hub's cache links to its blobs."""
    home = directory.resolve()
    snapshot = next((folder for folder in (home, *home.parents) if folder.match("models--*/snapshots/*")), None)
    places = (home, snapshot.parents[1] / "blobs") if snapshot else (home,)
    return not any(map(path.resolve().is_relative_to, places))


def check_own_files(directory: Path) -> None:
    """Refuse a folder whose files are links to others, no files, or name some elsewhere for transformers to read."""
    for path in sorted((*directory.iterdir(), *(directory / TEMPLATES).glob("*"))):
        if path.is_dir() and path.name != TEMPLATES:  # nothing is read of other folders
            continue
        if leads_out(path, directory):
            kind, fix = f"a link to {path.resolve()}", "copy the file itself there, or remove the link"
        elif path.exists() and not path.is_file() and path.name != TEMPLATES:
            kind, fix = "a pipe, a socket or a device", "remove it"
        else:
            continue
        raise CheckpointError(kind, expected="a file of the checkpoint's own folder", fix=fix, where=path)
    if pair := equal_elsewhere(path.name for path in sorted(directory.iterdir())):
        raise CheckpointError(
            f"{pair[0]!r} and {pair[1]!r}", expected=DISTINCT, fix="rename or remove one", where=directory
        )
    for name in (CONFIG, TOKENIZER_CONFIG):
        _check_named(directory / name)


def _check_named(path: Path) -> None:
    """Refuse a config that names files elsewhere; what is wrong with it otherwise, who reads it says."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return
    for key, value in config.items() if isinstance(config, dict) else ():
        listed = key in NAMED_FILES and any(
            not is_own_name(name) for name in (value if isinstance(value, list) else [value])
        )
        single = key.endswith("_file") and isinstance(value, str) and not is_own_name(value) and os.path.exists(value)
        if listed or single:  # single: many tell a place on their author's machine, which is not here
            expected, fix = f"{key} to name files of its own folder", "take that field out"
            raise CheckpointError(repr(value), expected=expected, fix=fix, where=path)
