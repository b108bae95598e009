"""Is pruning worth it? One model with fewer layers beside fewer bits, fewer neurons and 2:4 sparsity, at equal bytes.

    python studies/compare.py MODEL --size 75% --repair -o page.md
    python studies/compare.py MODEL --pruned small --tasks piqa --limit 100

Every variant is a folder that plain transformers loads, judged by `evaluate` and timed in turns with the base model by
`profile`. Weights are held in bf16 where nothing else is said. A variant that cannot be had says why.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import shortstack as ss
from shortstack.errors import ArchitectureError, ShortstackError
from shortstack.machine.formats import BYTES, count_in, number, size

PACKAGES = ("torch", "transformers", "torchao", "bitsandbytes")
MULTIPLE = 8  # neurons: what matrix units want
GROUP, ZEROS = 4, 2  # of a mask
UNTIMED = "a mask saves no memory here: quality only"


@dataclass(frozen=True)
class Variant:
    """A checkpoint with its evaluation and speed, or the reason why there is none."""

    name: str
    checkpoint: ss.Checkpoint | None
    note: str = ""
    evaluation: ss.EvalResult | None = None
    speed: str = ""

    def row(self, budget: int, texts: Sequence[str], tasks: Sequence[str]) -> str:
        if self.checkpoint is None or self.evaluation is None:
            cells = [self.name, *["-"] * (3 + len(texts) + len(tasks)), self.note]
        else:
            nbytes, found = self.checkpoint.weight_bytes, self.evaluation
            fits = nbytes <= budget and self.note != UNTIMED
            measured = [f"{number(found.perplexity[text].value)}" for text in texts]
            measured += [f"{found.tasks[task].value:.3f}" for task in tasks]
            cells = [self.name, size(nbytes), "yes" if fits else "no", *measured, self.speed, self.note]
        return f"| {' | '.join(cells)} |"


class Comparison:
    """Makes the variants of one model and judges them alike. folder: for their checkpoints."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.base = ss.Checkpoint.open(options.model)
        self.ours = ss.Checkpoint.open(options.pruned) if options.pruned else None
        self.budget = self.ours.weight_bytes if self.ours else budget_of(options.size, self.base.weight_bytes)
        read = partial(ss.Tokens.read, options.text, self.base.tokenizer())
        self.tokens, self.repair_tokens = read(samples=options.samples), read(samples=2 * options.samples)

    def variants(self) -> Iterator[Variant]:
        yield Variant("base", self.base)
        if self.ours:
            yield Variant("given", self.ours, removed_from(self.ours))
        makers = (self.pruned, *([self.repaired] if self.options.repair else []))
        makers += (self.int8, self.nf4, self.narrowed, self.sparse)
        for make in makers:
            name = make.__name__
            try:
                checkpoint, note = make(self.folder / name)
            except (ShortstackError, ImportError) as error:
                yield Variant(name, None, str(error))
            else:
                yield Variant(name, checkpoint, note)

    def pruned(self, out: Path) -> tuple[ss.Checkpoint, str]:
        """Remove the fewest layers, lowest by the metric first, without which the rest fits."""
        how = {"metric": self.options.metric, "target_size": f"{self.budget}B"}
        self.plan = ss.select_layers(self.base, self.tokens, **how)
        made = ss.prune(self.base, self.plan, out)
        return made, removed_from(made)

    def repaired(self, out: Path) -> tuple[ss.Checkpoint, str]:
        made = ss.prune(self.base, self.plan, out, repair=self.repair_tokens)
        return made, removed_from(made)

    def int8(self, out: Path) -> tuple[ss.Checkpoint, str]:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return self.saved(self.loaded(TorchAoConfig(Int8WeightOnlyConfig())), out), "torchao, one scale a row"

    def nf4(self, out: Path) -> tuple[ss.Checkpoint, str]:
        from transformers import BitsAndBytesConfig

        double = {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **double)
        return self.saved(self.loaded(config), out), "bitsandbytes, double-quantised scales"

    def narrowed(self, out: Path) -> tuple[ss.Checkpoint, str]:
        """Keep the neurons of each MLP whose activations have the largest norm (after Minitron, arXiv 2407.14679)."""
        model = self.loaded()
        mlps = mlps_of(model)
        width, neuron_bytes = mlps[0].down_proj.in_features, sum(map(bytes_per_neuron, mlps))
        whole = sum(weight.nbytes for weight in model.parameters())  # a tied head once
        keep = (width - max(0, -(-(whole - self.budget) // neuron_bytes))) // MULTIPLE * MULTIPLE
        if keep < MULTIPLE:
            raise ArchitectureError(f"{size(self.budget)} is too small without any neuron; give more")
        norms = input_norms(model, [mlp.down_proj for mlp in mlps], self.tokens.ids)
        for mlp, importance in zip(mlps, norms, strict=True):
            narrow(mlp, importance.argsort(descending=True, stable=True)[:keep].sort().values)
        model.config.get_text_config().intermediate_size = keep
        return self.saved(model, out), f"{keep:,} of {width:,} neurons in each MLP"

    def sparse(self, out: Path) -> tuple[ss.Checkpoint, str]:
        """Zero two of every four weights of each matrix by Wanda (arXiv 2306.11695, equation 1), base activations."""
        model = self.loaded()
        head = model.get_output_embeddings()
        matrices = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        if not matrices or any(matrix.in_features % GROUP for matrix in matrices):
            raise ArchitectureError(f"its matrices do not divide into groups of {GROUP}; 2:4 sparsity is not possible")
        for matrix, norms in zip(matrices, input_norms(model, matrices, self.tokens.ids), strict=True):
            mask(matrix, norms)
        return self.saved(model, out), UNTIMED

    def loaded(self, quantisation: object = None) -> PreTrainedModel:
        """Load the base model by transformers, in bf16; a GGUF file is converted to the cache before."""
        place = self.base.directory
        return AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.bfloat16, quantization_config=quantisation
        ).eval()

    def saved(self, model: PreTrainedModel, out: Path) -> ss.Checkpoint:
        model.save_pretrained(out)
        self.base.tokenizer().save_pretrained(out)
        return ss.Checkpoint.open(out)

    def judged(self, variant: Variant) -> Variant:
        if variant.checkpoint is None:
            return variant
        options = self.options
        texts = {"perplexity": options.perplexity.split(","), "seq_length": options.length}
        names = ("tasks", "limit", "data_dir")
        tasks = {name: getattr(options, name) for name in names} if options.tasks else {}
        evaluation = ss.evaluate(variant.checkpoint, ss.EvalConfig(**texts, num_samples=options.windows, **tasks))
        speed = "-" if variant.note == UNTIMED else self.speed(variant.checkpoint)
        return Variant(variant.name, variant.checkpoint, variant.note, evaluation, speed)

    def speed(self, checkpoint: ss.Checkpoint) -> str:
        """Decoding speed over the base model's, with its confidence interval, from runs in turns."""
        if checkpoint is self.base:
            return "1"
        timing = ss.Timing((1,), prompt=128, new_tokens=16, repeats=self.options.repeats)
        found = ss.profile(checkpoint, base=self.base, timing=timing)
        if not found.ratios:
            return "-"
        ratio = found.ratios[0].decode
        return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def budget_of(text: str, whole: int) -> int:
    """Read bytes: a share of the base model's, or a size such as 4GB."""
    budget = int(whole * float(text.removesuffix("%")) / 100) if text.endswith("%") else count_in(BYTES, text)
    if not budget or not 0 < budget < whole:
        sys.exit(
            f"--size {text}: give a share such as 75%, or a size such as 4GB, below the base model's {size(whole)}"
        )
    return budget


def removed_from(checkpoint: ss.Checkpoint) -> str:
    plan = checkpoint.record.get("plan") if checkpoint.record else None
    return f"without layers {', '.join(map(str, plan['removed']))}" if plan else "as it is"


def mlps_of(model: PreTrainedModel) -> list[nn.Module]:
    """Find the MLPs of plain and gated form; refuse others, such as routed experts and fused matrices."""
    mlps = [module for module in model.modules() if isinstance(getattr(module, "down_proj", None), nn.Linear)]
    wrong = not mlps or len({mlp.down_proj.in_features for mlp in mlps}) > 1
    if wrong or not all(isinstance(getattr(mlp, "up_proj", None), nn.Linear) for mlp in mlps):
        raise ArchitectureError("its MLPs are not one up_proj and down_proj of one width; they cannot be narrowed here")
    return mlps


def entering(mlp: nn.Module) -> list[nn.Linear]:
    return [getattr(mlp, name) for name in ("gate_proj", "up_proj") if hasattr(mlp, name)]


def bytes_per_neuron(mlp: nn.Module) -> int:
    width = mlp.down_proj.in_features
    biases = sum(matrix.bias.nbytes for matrix in entering(mlp) if matrix.bias is not None)
    return (sum(matrix.weight.nbytes for matrix in (*entering(mlp), mlp.down_proj)) + biases) // width


def narrow(mlp: nn.Module, kept: Tensor) -> None:
    """Keep some neurons of an MLP, in place: rows of what enters, columns of what leaves."""
    for matrix in entering(mlp):
        matrix.weight = nn.Parameter(matrix.weight[kept].clone(), requires_grad=False)
        matrix.out_features = len(kept)
        if matrix.bias is not None:
            matrix.bias = nn.Parameter(matrix.bias[kept].clone(), requires_grad=False)
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, kept].clone(), requires_grad=False)
    mlp.down_proj.in_features = len(kept)


@torch.no_grad()
def mask(matrix: nn.Linear, norms: Tensor) -> None:
    """Zero two of every four inputs of each row: those with the smallest |W_ij| |X_j|_2."""
    weight = matrix.weight
    groups = (weight.abs().float() * norms.float()).view(len(weight), -1, GROUP)
    least = groups.topk(ZEROS, largest=False).indices
    weight.data.view(len(weight), -1, GROUP).scatter_(-1, least, 0)


@torch.no_grad()
def input_norms(model: PreTrainedModel, matrices: Sequence[nn.Linear], ids: Tensor) -> list[Tensor]:
    """Compute |X_j|_2 over all tokens of `ids` [windows, length], for each input channel j of each matrix."""
    squares = [torch.zeros(matrix.in_features, dtype=torch.float64) for matrix in matrices]

    def record(total: Tensor, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        total += args[0].detach().double().flatten(0, -2).square().sum(0)

    hooks = [
        matrix.register_forward_pre_hook(partial(record, total))
        for matrix, total in zip(matrices, squares, strict=True)
    ]
    for window in ids.split(4):
        model(input_ids=window, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [total.sqrt() for total in squares]


def page(comparison: Comparison, variants: Sequence[Variant]) -> str:
    """Write the table, best first by the mean loss over the texts, and what it was made with."""
    found = [variant for variant in variants if variant.evaluation]
    texts = list(found[0].evaluation.perplexity)
    tasks = list(found[0].evaluation.tasks)
    losses = {each.name: sum(text.loss for text in each.evaluation.perplexity.values()) for each in found}
    ranked = sorted(variants, key=lambda variant: losses.get(variant.name, float("inf")))
    heads = ("", "bytes", "fits", *(f"perplexity, {text}" for text in texts), *tasks, "decode", "")
    base, budget = comparison.base, comparison.budget
    arguments = [Path(word).name for word in sys.argv[1:]]
    lines = [
        f"# {base.source} in {size(budget)}, {budget / base.weight_bytes:.0%} of its bytes\n",
        f"`{shlex.join(['python', 'studies/compare.py', *arguments])}`; {versions()}; {torch.get_num_threads()} threads.\n",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(variant.row(budget, texts, tasks) for variant in ranked),
        "\nBest first. Decode: decoding speed over the base model's, from runs in turns. A mask fits no budget here.",
    ]
    return "\n".join(lines) + "\n"


def versions() -> str:
    return ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="the base model: a folder, a hub id, a .gguf file, or demo")
    made.add_argument("--size", default="50%", help="bytes of weights: a share of the base model's, or 4GB")
    made.add_argument("--pruned", help="a pruned or healed checkpoint to add; its bytes are the budget")
    made.add_argument("--repair", action="store_true", help="add the pruned model repaired")
    made.add_argument("--metric", default="ppl", help="how layers are chosen")
    made.add_argument("--text", default="pydoc", help="text that layers, neurons and masks are chosen on")
    made.add_argument("--samples", type=int, default=32, help="windows of it, of 128 tokens each")
    made.add_argument("--perplexity", default="pydoc", help="texts to measure, with commas")
    made.add_argument("--windows", type=int, default=4, help="windows of each text that is measured")
    made.add_argument("--length", type=int, default=512, help="tokens of such a window")
    made.add_argument("--tasks", help="tasks of lm-evaluation-harness, with commas")
    made.add_argument("--limit", type=int, default=100, help="documents of each task")
    made.add_argument("--data-dir", help="folder with the data of the tasks")
    made.add_argument("--repeats", type=int, default=6, help="timed turns with the base model")
    made.add_argument("-o", "--output", type=Path, help="write the page here instead of stdout")
    return made


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        comparison = Comparison(options, Path(folder))
        variants = [comparison.judged(variant) for variant in comparison.variants()]
        text = page(comparison, variants)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
