"""What --help shows of a verb: how it is typed, and the options that most people need; --help-all shows all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shortstack.errors import InputError


@dataclass(frozen=True)
class Shown:
    """summary: the first line of the verb's docstring, so that the list of verbs is shown without importing them.

    examples: what is typed after `shortstack`. options: those that --help shows, without their dashes; (): all.
    """

    summary: str
    examples: tuple[str, ...]
    options: tuple[str, ...] = ()


# By verb, in the order of --help.
HELP: Mapping[str, Shown] = {
    "": Shown(
        "Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.",
        (
            "shrink org/model --drop 25% --data notes.txt -o small",
            "score org/model --metric all -o scores.json",
            "demo",
        ),
    ),
    "score": Shown(
        "Score every layer by one or more metrics, in one walk.",
        (
            "score org/model --metric all -o scores.json",
            "score org/model --metric kl --text notes.txt --samples 64",
            "score org/model --metric bi,ppl --plot orders.svg",
        ),
        ("metric", "window", "output", "plot", "text", "samples", "device"),
    ),
    "sweep": Shown(
        "Measure the model cut at every depth, in one walk.",
        (
            "sweep org/model --plot curve.svg",
            "sweep org/model --task piqa --limit 200",
            "sweep org/model --text notes.txt -o depths.json",
        ),
        ("text", "samples", "task", "limit", "output", "plot", "device"),
    ),
    "plan": Shown(
        "Choose the layers to remove, from scores or a model.",
        (
            "plan scores.json --metric ppl --drop 25% -o plan.json",
            "plan org/model --strategy repaired-blocks --params 6B -o plan.json",
            "plan org/model --layers 22-29,3 --mergekit slices.yaml",
        ),
        (
            "metric",
            "drop",
            "params",
            "memory",
            "layers",
            "block",
            "strategy",
            "text",
            "device",
            "output",
        ),
    ),
    "prune": Shown(
        "Write the model without some layers, by copying bytes.",
        (
            "prune org/model --strategy repaired-blocks --drop 8 --repair -o out",
            "prune org/model --layers 22-29 -o pruned",
            "prune model.gguf --drop 25% -o small.gguf",
        ),
        (
            *("output", "drop", "params", "memory", "layers", "plan", "metric", "strategy", "repair"),
            *("text", "device", "dry-run"),
        ),
    ),
    "repair": Shown(
        "Refit the kept layers of a cut in closed form.",
        (
            "repair pruned --source org/model -o repaired",
            "repair pruned --source org/model --text notes.txt -o repaired",
            "repair pruned --source org/model --dry-run -o repaired",
        ),
        ("source", "output", "repair-samples", "text", "length", "device", "dry-run"),
    ),
    "verify": Shown(
        "Check that a checkpoint is whole and computes what it should.",
        ("verify pruned", "verify pruned --against org/model", "verify small.gguf --against model.gguf"),
        ("output", "against", "device"),
    ),
    "heal": Shown(
        "Train a pruned checkpoint to get back what it lost.",
        (
            "heal pruned --recipe best --data my.txt --teacher org/model -o out",
            "heal pruned --data chats.jsonl --method lora --lr 2e-4 -o out",
            "heal pruned --data my.txt --dry-run -o out",
        ),
        (
            *("output", "recipe", "data", "teacher", "method", "last", "rank", "loss", "epochs", "lr", "batch-size"),
            *("max-length", "max-samples", "resume", "plot", "device", "dry-run"),
        ),
    ),
    "evaluate": Shown(
        "Measure perplexity, tasks, and what the model writes.",
        (
            "evaluate small --against org/model --probes",
            "evaluate small --tasks piqa,winogrande --data-dir data --limit 200",
            "evaluate small --perplexity notes.txt -o found.json",
        ),
        ("perplexity", "tasks", "limit", "data-dir", "probes", "against", "output", "device", "dry-run"),
    ),
    "shrink": Shown(
        "Make a model shorter, from its name to a healed checkpoint.",
        (
            "shrink org/model --drop 25% --data notes.txt -o small",
            "shrink org/model --memory 4GB --minutes 60 -o small",
            "shrink org/model --min-quality 95% --dry-run -o small",
        ),
        (
            *(
                "output",
                "drop",
                "params",
                "memory",
                "min-quality",
                "data",
                "recipe",
                "tasks",
                "limit",
                "data-dir",
                "minutes",
            ),
            *("device", "dry-run"),
        ),
    ),
    "study": Shown(
        "Run a grid of trials, each step once.",
        ("study trials.yaml -o runs", "study trials.yaml --workers 4 -o runs", "study trials.yaml --dry-run -o runs"),
    ),
    "watch": Shown(
        "Show how far a running study is.", ("watch runs", "watch runs --every 60", "watch runs --once --json")
    ),
    "profile": Shown(
        "Count parameters, bytes and operations; measure speed and memory.",
        (
            "profile small --against org/model",
            "profile small --no-speed",
            "profile small --batch-size 1,8 -o speed.json",
        ),
        ("batch-size", "prompt", "new-tokens", "against", "no-speed", "output", "device"),
    ),
    "compare": Shown(
        "Compare pruned, quantised and narrowed models at equal bytes.",
        (
            "compare org/model --memory 50%",
            "compare org/model --tasks piqa --data-dir data --limit 100",
            "compare org/model --healed small --memory 75%",
        ),
        ("memory", "healed", "repair", "perplexity", "tasks", "limit", "data-dir", "output", "device", "dry-run"),
    ),
    "report": Shown(
        "Show what a study found, as one page or as tables.",
        ("report runs", "report runs -o page.html", "report runs --latex"),
    ),
    "export": Shown(
        "Take a checkpoint to where models run: llama.cpp, Ollama, the hub.",
        (
            "export small --gguf small.gguf",
            "export small --gguf small.gguf --ollama",
            "export small --push-to-hub org/small --results found.json",
        ),
    ),
    "demo": Shown(
        "Make a small model that comes along shorter, and measure it.",
        ("demo", "demo --minutes 15", "demo --json"),
    ),
    "ls": Shown("List what can be named on the command line.", ("ls metrics", "ls recipes", "ls strategies --json")),
    "cache": Shown(
        "Show what is kept to be used again, or clear it.", ("cache", "cache --clear", "cache --clear --kind models")
    ),
}

# What other tools call an option, where a verb has ours: transformers, peft, lm-eval, llama.cpp.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "--learning-rate": ("--lr",),
    "--num-train-epochs": ("--epochs",),
    "--per-device-train-batch-size": ("--batch-size",),
    "--train-batch-size": ("--batch-size",),
    "--lora-r": ("--rank",),
    "--lora-rank": ("--rank",),
    "--lora-alpha": ("--alpha",),
    "--lora-dropout": ("--dropout",),
    "--target-modules": ("--targets",),
    "--lr-scheduler-type": ("--decay",),
    "--optim": ("--optimizer",),
    "--max-seq-length": ("--max-length",),
    "--bf16": ("--dtype", "bfloat16"),
    "--fp16": ("--dtype", "float16"),
    "--torch-dtype": ("--dtype",),
    "--task": ("--tasks",),
    "--tasks": ("--task",),
    "--output-dir": ("--output",),
    "--output-path": ("--output",),
    "--num-samples": ("--samples",),
}


SHORT: Mapping[str, str] = {"-o": "--output", "-q": "--quiet", "-v": "--verbose"}

# What is anyhow so where a verb has the other option: heal computes in bf16 where the device has it.
ANYHOW: Mapping[str, str] = {"--bf16": "--lr"}

# What others call a thing that several of ours may be.
MEANT: Mapping[str, tuple[str, ...]] = {
    "--num-layers": ("--drop",),
    "--num-layers-to-prune": ("--drop",),
    "--ratio": ("--drop",),
    "--sparsity": ("--drop",),
    "--prune-percent": ("--drop",),
    "--target-size": ("--params", "--memory"),
    "--n-layers": ("--drop",),
    "--per-device-eval-batch-size": ("--micro-batch-size",),
}

# What others ask of a verb that it does not do, by an option that such a verb has, and what to do.
ARITHMETIC = "leave it out: what trains computes in bf16 where the device has it, and else in float32"
POSITIONAL = "name the model without an option, as `demo` or org/model, behind the verb"
REFUSED: Mapping[str, tuple[str, str]] = {
    "--fp16": ("--lr", ARITHMETIC),
    "--dtype": ("--lr", ARITHMETIC),
    "--torch-dtype": ("--lr", ARITHMETIC),
    "--gradient-accumulation-steps": (
        "--lr",
        "write --batch-size, the samples of a whole step; --micro-batch-size is how many of them pass at once",
    ),
    "--warmup-ratio": ("--lr", "write --warmup-steps, a number of steps"),
    "--load-in-4bit": ("--lr", "write --method qlora"),
    "--model": ("--verbose", POSITIONAL),
    "--model-name-or-path": ("--verbose", POSITIONAL),
    "--model-args": ("--verbose", POSITIONAL),
    "--pretrained": ("--verbose", POSITIONAL),
}

OTHERS = "..."  # where an option stands that ORDER does not name
# The order of options in --help, of every verb.
ORDER = (
    *("output", "source", "against", "drop", "params", "memory", "min-quality", "layers", "plan", "metric", "window"),
    *("block",),
    *("strategy", "recipe", "data", "teacher", "method", "last", "rank", "loss", "epochs", "lr", "batch-size"),
    *("max-length", "max-samples", "resume", "repair", "repair-samples", "text", "samples", "length", "perplexity"),
    *("task", "tasks", "limit", "data-dir", "probes", "healed", "prompt", "new-tokens", "no-speed"),
    *("minutes", "plot", "device", OTHERS, "dry-run", "json", "quiet", "verbose", "help-all", "help"),
)


def place(names: Iterable[str]) -> int:
    """Where an option stands in --help, by its names without dashes."""
    return min((ORDER.index(name) for name in names if name in ORDER), default=ORDER.index(OTHERS))


def check_near(words: list[str], known: set[str]) -> None:
    """Refuse what is nearer to another tool's name of an option than to any of ours, naming ours."""
    theirs = {alias: ours[0] for alias, ours in ALIASES.items() if ours[0] in known}
    for word in words:
        name = word.partition("=")[0]
        if not name.startswith("--") or name in known or name in ("--", "--help"):
            continue
        meant = [ours for ours in MEANT.get(name.replace("_", "-"), ()) if ours in known]
        having, fix = REFUSED.get(name.replace("_", "-"), ("", ""))
        if meant or having in known:
            fix = f"write {' or '.join(meant)}" if meant else fix
            raise InputError("none of that name", expected="an option of this verb", fix=fix, where=name)
        near = difflib.get_close_matches(name, [*known, *theirs], 1, 0.8)
        if near and near[0] in theirs:
            fix = f"write {theirs[near[0]]}, or {near[0]}"
            raise InputError("none of that name", expected="an option of this verb", fix=fix, where=name)


def spelled(words: list[str], known: set[str]) -> list[str]:
    """The words that were typed, with what other tools call an option in place of ours, where the verb has no such name.

    >>> spelled(["--lora-r=8", "--learning_rate", "1e-4", "--bf16"], {"--rank", "--lr", "--dtype"})
    ['--rank=8', '--lr', '1e-4', '--dtype', 'bfloat16']
    """
    found, before, typed_as = list[str](), "", dict[str, str]()
    for word in words:
        if before in ANYHOW and word.lower() == "true":  # as transformers types it
            before = ""
            continue
        before = ""
        typed, equals, value = word.partition("=")
        name = typed if typed in known or not typed.startswith("--") else typed.replace("_", "-")
        ours = ALIASES.get(name, ())
        if name not in known and ours and ours[0] in known:
            first, *rest = ours
            found += [f"{first}{equals}{value}", *rest]
            _check_one_name(typed_as, first, typed)
        elif name in known or ANYHOW.get(name) not in known or value.lower() not in ("", "true"):
            found.append(f"{name}{equals}{value}" if name in known else word)
            if name in known:
                _check_one_name(typed_as, SHORT.get(name, name), typed)
        else:
            before = name
    return found


def _check_one_name(typed_as: dict[str, str], ours: str, typed: str) -> None:
    """Refuse a second name of an option: which of the two values is meant nobody could say."""
    before = typed_as.setdefault(ours, typed)
    if before.replace("_", "-") != typed.replace("_", "-"):
        raise InputError(f"{before}, which is the same", expected="an option once", fix="leave one out", where=typed)
