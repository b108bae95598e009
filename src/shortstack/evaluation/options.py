"""Settings of evaluate(). No torch is imported here."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from shortstack.data import Text, Tokens
from shortstack.data.sources import OWN
from shortstack.data.text import SOURCES_HELP, read_source
from shortstack.errors import DataError, InputError
from shortstack.evaluation.suites import SUITES, named
from shortstack.machine.options import Amount, check_installed, options
from shortstack.machine.yamlfile import check_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_TASKS = ("limit", "num_fewshot", "data_dir", "include", "batch_size")  # no effect without tasks


def load_harness() -> ModuleType:
    """Import the module that runs lm-evaluation-harness."""
    check_installed("lm_eval", "eval", option="tasks", why="for tasks")
    return import_module("shortstack.evaluation.harness")


def _names(value: Any) -> tuple[str, ...]:
    """Return names of texts; rows in memory become a file of the cache."""
    if value in ("none", ["none"], ("none",), [], ()):
        return ()
    source = read_source(value)
    return (source,) if isinstance(source, str) else tuple(source)


TextNames = Annotated[tuple[str, ...], BeforeValidator(_names)]
TaskNames = Annotated[tuple[str, ...], BeforeValidator(named)]  # of suites one by one


@options
class EvalConfig:
    """Settings of evaluate(): texts, tasks and probes.

    perplexity: names of texts, each measured by itself, or rows in memory: records or a datasets.Dataset.

    >>> EvalConfig(tasks="language,piqa").tasks, EvalConfig("none", probes=True).perplexity
    (('wikitext', 'lambada_openai', 'piqa'), ())
    """

    perplexity: TextNames = Field(
        ("pydoc",), description=f"Texts: {SOURCES_HELP} Of pydoc only the held-out part is read. none: no text."
    )
    seq_length: int = Field(512, ge=2, description="Tokens per window.")
    num_samples: Amount | None = Field(
        None, description="Number of windows drawn at random, or a share such as 10%. Default: all."
    )
    tasks: TaskNames = Field(
        (), description=f"Comma-separated suites ({', '.join(SUITES)}) or tasks of lm-evaluation-harness."
    )
    limit: Amount | None = Field(
        None,
        description="Only the first n documents of each task, or a share such as 10%; of a group, of each subtask.",
    )
    num_fewshot: int | None = Field(None, ge=0, description="Few-shot examples. Default: the task's own number.")
    data_dir: Path | None = Field(None, description="A folder of .jsonl or .parquet files for standard tasks.")
    include: Path | None = Field(None, description="A folder of your own lm-eval task files.")
    batch_size: int | None = Field(None, ge=1, description="Sequences per forward pass. Default: by token count.")
    probes: bool = Field(
        False, description="Twelve small generation tasks, and the share of repeated 4-grams in free writing."
    )
    probe_items: int = Field(100, ge=2, le=100, description="Items of each probe, drawn by seed.")

    def __post_init__(self) -> None:
        if not (self.perplexity or self.tasks or self.probes):
            raise InputError("nothing to measure; name a text such as pydoc, tasks or probes", option="perplexity")
        for name in OF_TASKS if not self.tasks else ():
            if (value := getattr(self, name)) is not None:
                raise InputError(f"{value} has no effect without tasks; add tasks, such as paper", option=name)
        if not self.probes and self.probe_items != EvalConfig.probe_items:
            raise InputError(f"{self.probe_items} has no effect without probes; add probes", option="probe_items")
        for name in ("data_dir", "include"):
            if (folder := getattr(self, name)) and not folder.is_dir():
                raise InputError(f"{folder} is not a folder; give one that exists", option=name)
        if self.include:
            check_folder(self.include)  # the harness passes over a file that it cannot read

    @property
    def text(self) -> Text | None:
        """The texts, each measured by itself; None without any."""
        weights = dict.fromkeys(self.perplexity, 1.0)
        return Text(weights, self.num_samples, self.seq_length) if self.perplexity else None

    def check_texts(self) -> None:
        """Refuse texts that cannot be read, before a model is opened; the hub is not asked."""
        if not self.text:
            return
        self.text.check("perplexity")
        for source in self.text.sources:
            if source.name == OWN:
                raise DataError("self is what the base model writes; measure on another text", option="perplexity")
            if source.endless and not isinstance(self.num_samples, int):
                raise DataError(f"{source.label} has no end; give a number of windows", option="num_samples")

    def read_texts(
        self, tokenizer: "PreTrainedTokenizerBase", seed: int, *, at_least: int | None = None
    ) -> Mapping[str, Tokens]:
        """Read the windows of each text, by its name. at_least: as for Tokens.read()."""
        self.check_texts()
        return self.text.windows(tokenizer, seed, held_out=True, at_least=at_least) if self.text else {}
