"""The catalogue of evaluation tasks: suites, and each task's metric, chance level and files. Reading it imports no torch.

A task is one of lm-evaluation-harness, under the harness's own name, with its prompt, its metrics and its number of examples
in the prompt. What stands here beside the names is what the harness does not say: which metric counts, and where a folder of
local files keeps the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from shortstack.errors import InputError

# Metrics that are a share of documents, 0 to 1: what an average is taken over.
SHARES = frozenset({"acc", "acc_norm", "exact_match", "em", "f1"})
# Metrics that are a perplexity: what a document's outcome, its log-likelihood in nats, is per.
PERPLEXITIES: Mapping[str, str] = {
    "perplexity": "document",
    "word_perplexity": "word",
    "byte_perplexity": "byte",
    "bits_per_byte": "byte",
}


@dataclass(frozen=True)
class StandardTask:
    """A task whose metric and files are known; the harness knows the rest.

    metric: the one that counts. chance: what guessing gets on it; None where that has no meaning.
    evaluated: the split whose documents are asked. files: split -> file in a data folder, without .jsonl or .parquet;
    `{part}` is a part's name. columns: what each document has, parted by spaces.
    stock: the task's file among those the harness ships; group: that of the group its parts form.
    about: what is asked, and where it is from. needs: splits beside `evaluated` without which it is another task.
    """

    name: str
    metric: str
    chance: float | None
    evaluated: str
    files: Mapping[str, str]
    columns: str
    stock: str
    about: str
    group: str | None = None
    needs: frozenset[str] = frozenset()


def _files(layout: str, splits: str) -> dict[str, str]:
    return {split: layout.replace("{split}", split) for split in splits.split()}


# fmt: off
TASKS: Mapping[str, StandardTask] = {task.name: task for task in (
    StandardTask("mmlu", "acc", 0.25, "test", _files("mmlu/{split}/{part}", "dev validation test"),
                 "question choices answer", "mmlu/default/mmlu_{part}.yaml",
                 "57 subjects, four choices by letter (arXiv 2009.03300)", "mmlu/default/_mmlu.yaml"),
    StandardTask("cmmlu", "acc", 0.25, "test", _files("cmmlu/jsonl/{split}/{part}", "dev test"),
                 "Question A B C D Answer", "cmmlu/cmmlu_{part}.yaml",
                 "67 subjects in Chinese, four choices by letter (arXiv 2306.09212)", "cmmlu/_cmmlu.yaml"),
    StandardTask("piqa", "acc", 0.5, "validation", _files("piqa/{split}", "train validation"),
                 "goal sol1 sol2 label", "piqa/piqa.yaml", "physical common sense, two choices (arXiv 1911.11641)"),
    StandardTask("openbookqa", "acc", 0.25, "test", _files("openbookqa/{split}", "train validation test"),
                 "question_stem choices answerKey", "openbookqa/openbookqa.yaml",
                 "elementary science, four choices (arXiv 1809.02789)"),
    StandardTask("winogrande", "acc", 0.5, "validation", _files("winogrande/{split}", "train validation"),
                 "sentence option1 option2 answer", "winogrande/default.yaml",
                 "which of two nouns a pronoun means (arXiv 1907.10641)"),
    StandardTask("hellaswag", "acc", 0.25, "validation", _files("hellaswag/{split}", "train validation"),
                 "activity_label ctx_a ctx_b endings label", "hellaswag/hellaswag.yaml",
                 "the right ending of four (arXiv 1905.07830)"),
    StandardTask("arc_easy", "acc", 0.25, "test", _files("arc/ARC-Easy-{split}", "train validation test"),
                 "question choices answerKey", "arc/arc_easy.yaml",
                 "school science, mostly four choices (arXiv 1803.05457)"),
    StandardTask("arc_challenge", "acc", 0.25, "test", _files("arc/ARC-Challenge-{split}", "train validation test"),
                 "question choices answerKey", "arc/arc_challenge.yaml",
                 "harder school science, mostly four choices"),
    StandardTask("gsm8k", "exact_match", 0.0, "test", _files("gsm8k/{split}", "train test"), "question answer",
                 "gsm8k/gsm8k.yaml", "school arithmetic, generated after five examples (arXiv 2110.14168)",
                 needs=frozenset({"train"})),
    StandardTask("wikitext", "word_perplexity", None, "test",
                 _files("wikitext2/{split}_document_level", "test validation train"), "page", "wikitext/wikitext.yaml",
                 "perplexity per word of whole WikiText-2 pages (arXiv 1609.07843)"),
    StandardTask("lambada_openai", "acc", 0.0, "test", _files("lambada/{split}", "test"), "text",
                 "lambada/lambada_openai.yaml", "the last word of a passage, predicted exactly (arXiv 1606.06031)"),
)}
# fmt: on
SUITES: Mapping[str, tuple[str, ...]] = {
    # The eight tasks of arXiv 2411.15558, section 3.2: zero-shot, acc and never acc_norm, the plain mean of the eight.
    "paper": ("mmlu", "cmmlu", "piqa", "openbookqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"),
    "reasoning": ("gsm8k",),
    "language": ("wikitext", "lambada_openai"),
}


def named(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Unfold suites into the names of tasks, each once, in order.

    >>> named("language,piqa")
    ('wikitext', 'lambada_openai', 'piqa')
    """
    words = [word.strip() for some in ([tasks] if isinstance(tasks, str) else tasks) for word in some.split(",")]
    if not all(words):
        raise InputError("a name is empty; name tasks or suites, such as paper", option="tasks")
    return tuple(dict.fromkeys(name for word in words for name in SUITES.get(word, (word,))))


def unknown(name: str, known: Sequence[str]) -> InputError:
    """Return the error about a name that no task has, with the nearest name."""
    of_ours, of_all = (get_close_matches(name, names, n=1, cutoff=0.5) for names in ([*TASKS, *SUITES], known))
    near = of_ours or of_all
    fix = f"did you mean {near[0]}?" if near else "`shortstack list tasks` lists the suites"
    return InputError(
        f"{name} is no task of lm-evaluation-harness, no file of include and no suite; {fix}", option="tasks"
    )
