"""Partial healing of a pruned SmolLM2 beside the scripts one would write with transformers.Trainer: time, memory, loss.

The same training samples, held-out samples, number of optimizer steps, optimizer, schedule and bf16 arithmetic; each
contender is a process of its own, timed from its start to the weights on disk:

    heal      shortstack.heal, the last three layers and the final norm, with an empty cache: it walks the frozen layers once
    again     the same on the same cut at another rate: a second trial, which finds what the frozen layers say in the cache
    trainer   Trainer on the whole model in fp32 under autocast, all but the same three layers and norm frozen, batches drawn
              at random and padded to their longest, labels -100 on prompts and padding, transformers' own loss
    lora      the same script with peft's LoRA of rank 8 and alpha 16 on the linear layers of all layers, merged at the end

All take the held-out loss after each epoch; heal also before the first, and it writes the weights of its lowest one, where
the scripts write their last. The loss in the tables is of the weights on disk, by one full fp32 forward for each sample.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness import median, ratios, spread, table, verdict

MAIN = Path(__file__).resolve()
LAYERS = "4-5,12-14,16-17,25"  # of SmolLM2
LAST, RANK, ALPHA = 3, 8, 16
SMOKE = {"samples": 16, "held_out": 4, "max_length": 32, "batch": 8, "epochs": 1}
IGNORED = -100


@dataclass(frozen=True)
class Setting:
    """Inputs that all contenders share. data: a file of samples, or pydoc; layers: what was cut from the model."""

    model: str
    layers: str
    data: str
    pruned: str
    samples: int
    held_out: int
    max_length: int
    batch: int
    epochs: int
    lr: float


@dataclass(frozen=True)
class Aim:
    """A ratio of two contenders' figures, taken round by round, and the least or the most that it should be."""

    name: str
    above: str
    below: str
    figure: str
    limit: float
    at_most: bool = False

    def ratio(self, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[float]:
        above, below = ([run[self.figure] for run in runs[name]] for name in (self.above, self.below))
        return ratios(above, below)

    def met(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit


AIMS = (
    Aim("time, trainer over heal", "trainer", "heal", "seconds", 3),
    Aim("peak RSS, heal over trainer", "heal", "trainer", "peak_rss", 0.5, at_most=True),
    Aim("time, lora over heal", "lora", "heal", "seconds", 4),
    Aim("time, heal over again", "heal", "again", "seconds", 2),
)


# --- the contenders, each run as a child of its own; what they import is part of their time and memory ---------------------


def child_prune(setting: Setting, out: str) -> None:
    """The cut that all of them heal."""
    from shortstack.checkpoint import Checkpoint
    from shortstack.pruning import prune

    checkpoint = Checkpoint.open(setting.model)
    prune(checkpoint, setting.layers, out)


def child_heal(setting: Setting, out: str) -> None:
    from shortstack.checkpoint import Checkpoint
    from shortstack.healing import HealingConfig, Partial, heal

    config = HealingConfig(
        data=setting.data,
        max_length=setting.max_length,
        max_samples=setting.samples + setting.held_out,
        held_out=setting.held_out,
        method=Partial(train_last=LAST),
        num_train_epochs=setting.epochs,
        learning_rate=setting.lr,
        per_device_train_batch_size=setting.batch,
        device="cpu",
    )
    found = heal(Checkpoint.open(setting.pruned), out, config)
    report(found.trainable_parameters, found.history.steps, tokens_per_s=found.history.tokens_per_s)


def child_trainer(setting: Setting, out: str) -> None:
    model = load(setting.pruned)
    model.requires_grad_(False)
    for part in (*model.model.layers[-LAST:], model.model.norm):
        part.requires_grad_(True)
    write(fit(model, setting, out), setting, out)


def child_lora(setting: Setting, out: str) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    write(fit(get_peft_model(load(setting.pruned), settings), setting, out).merge_and_unload(), setting, out)


def load(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def fit(model: Any, setting: Setting, out: str) -> Any:
    """The training that both scripts share."""
    from transformers import Trainer

    held_out, training = samples(setting)
    trainer = Trainer(model, training_arguments(setting, out), collate, training, held_out)
    seconds = trainer.train().metrics["train_runtime"]
    judging = sum(entry.get("eval_runtime", 0) for entry in trainer.state.log_history)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    report(trained, trainer.state.global_step, training_s=seconds - judging)
    return model


def training_arguments(setting: Setting, out: str) -> Any:
    """As HealingConfig's defaults."""
    from transformers import TrainingArguments

    from shortstack.machine.device import fast_bfloat16

    steps = -(-setting.samples // setting.batch) * setting.epochs
    return TrainingArguments(
        output_dir=f"{out}.trainer",
        num_train_epochs=setting.epochs,
        learning_rate=setting.lr,
        per_device_train_batch_size=setting.batch,
        per_device_eval_batch_size=setting.batch,
        warmup_steps=min(100, steps // 10),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        weight_decay=0.0,
        seed=0,
        bf16=fast_bfloat16("cpu"),
        use_cpu=True,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def samples(setting: Setting) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """Held-out samples and training samples, as heal takes them."""
    from transformers import AutoTokenizer

    from shortstack.data import Text, read_examples

    tokenizer = AutoTokenizer.from_pretrained(setting.pruned)
    text = Text(setting.data, None, setting.max_length)
    examples = read_examples(text, tokenizer)[: setting.samples + setting.held_out]
    found = [
        {
            "input_ids": list(each.ids),
            "labels": [token if learn else IGNORED for token, learn in zip(each.ids, each.learn, strict=True)],
        }
        for each in examples
    ]
    return found[: setting.held_out], found[setting.held_out :]


def collate(batch: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
    """Padded at the right to the longest of the batch."""
    import torch

    longest = max(len(sample["input_ids"]) for sample in batch)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(sample["input_ids"], 0) for sample in batch]),
        "attention_mask": torch.tensor([padded([1] * len(sample["input_ids"]), 0) for sample in batch]),
        "labels": torch.tensor([padded(sample["labels"], IGNORED) for sample in batch]),
    }


def write(model: Any, setting: Setting, out: str) -> None:
    """A checkpoint in the pruned one's dtype, with its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(setting.pruned).save_pretrained(out)


def child_judge(setting: Setting, *folders: str) -> None:
    """Held-out loss per token of each checkpoint, and how many tokens an epoch holds."""
    import torch
    from torch.nn.functional import cross_entropy

    held_out, training = samples(setting)
    losses = []
    for folder in folders:
        model, total, count = load(folder).eval(), 0.0, 0
        for sample in held_out:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([sample["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(sample["labels"][1:])
            total += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
            count += int((targets != IGNORED).sum())
        losses.append(total / count)
    learnt = sum(label != IGNORED for sample in training for label in sample["labels"][1:])
    tokens = sum(len(sample["input_ids"]) for sample in training)
    print(json.dumps({"losses": losses, "samples": len(training), "tokens": tokens, "learnt": learnt}))


def report(trainable: int, steps: int, **speed: float) -> None:
    """The last line that a contender prints."""
    print(json.dumps({"trainable_parameters": trainable, "steps": steps, **speed}), flush=True)


CHILDREN: dict[str, Callable[..., None]] = {
    "prune": child_prune,
    "heal": child_heal,
    "trainer": child_trainer,
    "lora": child_lora,
    "judge": child_judge,
}


# --- the contest ----------------------------------------------------------------------------------------------------------


class Contest:
    """All contenders, round after round, in a folder that is deleted after."""

    def __init__(self, setting: Setting, second_lr: float, work: Path) -> None:
        self.setting, self.work = Setting(**{**asdict(setting), "pruned": str(work / "pruned")}), work
        self.second_lr = second_lr
        self.runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("heal", "again", "trainer", "lora")}
        self.judged: dict[str, Any] = {}

    def run(self, rounds: int) -> None:
        self.child("prune", self.setting.pruned)
        self.judged = self.judge([self.setting.pruned])
        for turn in range(rounds):
            for name in harness.rotated(["heal", "trainer", "lora"], turn):
                self.timed(name, turn, self.setting.lr)
                if name == "heal":
                    self.timed("again", turn, self.second_lr)
            names = list(self.runs)
            losses = self.judge([str(self.out(name, turn)) for name in names])["losses"]
            for name, loss in zip(names, losses, strict=True):
                self.runs[name][turn]["held_out_loss"] = loss

    def out(self, name: str, turn: int) -> Path:
        return self.work / f"{name}-{turn}"

    def timed(self, name: str, turn: int, lr: float) -> None:
        """One run of a contender; heal's cache is as old as the round."""
        before = busy_seconds()
        ran = self.child("heal" if name == "again" else name, self.out(name, turn), turn=turn, lr=lr)
        others = (busy_seconds() - before - ran.cpu_seconds) / ran.seconds
        told = last_line(ran)
        tokens = self.judged["tokens"] * self.setting.epochs
        seconds = told.get("training_s") or tokens / told["tokens_per_s"]
        speed = {"training_s": seconds, "tokens_per_s": tokens / seconds, "cores_busy_with_others": others}
        self.runs[name].append({**asdict(ran), "output": "", **told, **speed, "lr": lr})
        print(
            f"  {name:8} {ran.seconds:6.1f} s, training {seconds:6.1f} s, {ran.peak_rss / 1e6:6.0f} MB", file=sys.stderr
        )

    def judge(self, folders: Sequence[str]) -> dict[str, Any]:
        return last_line(self.child("judge", *folders))

    def child(self, name: str, *arguments: object, turn: int = 0, lr: float | None = None) -> harness.Ran:
        setting = {**asdict(self.setting), "lr": lr or self.setting.lr}
        environment = {"HF_HUB_OFFLINE": "1", "SHORTSTACK_CACHE": str(self.work / f"cache-{turn}")}
        command = [sys.executable, str(MAIN), "--child", name, json.dumps(setting), *map(str, arguments)]
        return harness.measured(command, environment)


def busy_seconds() -> float:
    """Of all cores and all processes, since the machine started; the columns are proc(5)'s."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def last_line(ran: harness.Ran) -> dict[str, Any]:
    """Return what a child reported; other lines are its libraries'."""
    lines = [line for line in ran.output.splitlines() if line.startswith('{"')]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def row(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    def of(figure: str) -> list[float]:
        return [run[figure] for run in runs]

    return (
        name,
        f"{runs[0]['lr']:g}",
        f"{runs[0]['trainable_parameters']:,}",
        str(runs[0]["steps"]),
        spread(of("seconds"), 1),
        spread(of("training_s"), 1),
        f"{median(of('tokens_per_s')):,.0f}",
        f"{median(of('peak_rss')) / 1e6:,.0f}",
        f"{median(of('peak_anonymous')) / 1e6:,.0f}",
        f"{max(of('cores_busy_with_others')):.2f}",
        spread(of("held_out_loss"), 3),
    )


def aim_row(aim: Aim, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    found = aim.ratio(runs)
    wanted = f"{'at most' if aim.at_most else 'at least'} {aim.limit:g}"
    return aim.name, spread(found), f"{wanted}: {verdict(aim.met(median(found)))}"


def told(contest: Contest) -> list[str]:
    """The tables."""
    setting, judged = contest.setting, contest.judged
    heading = (
        "contender", "rate", "parameters that train", "steps", "start to weights on disk, s: median (range)",
        "training alone, s", "tokens/s", "peak RSS, MB", "without mapped files, MB",
        "cores busy with others, at most", "held-out loss",
    )  # fmt: skip
    what = (
        f"{setting.model} without layers {setting.layers}. Samples of {Path(setting.data).name}: {judged['samples']} to "
        f"train on, of {judged['tokens']:,} tokens, {judged['learnt']:,} of which count in the loss; {setting.held_out} "
        "held out. "
        f"Held-out loss before training: {judged['losses'][0]:.3f}."
    )
    rows = [row(name, runs) for name, runs in contest.runs.items()]
    aims = [aim_row(aim, contest.runs) for aim in AIMS]
    return [what, table(heading, rows), table(("ratio", "median (range)", "aim"), aims)]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        CHILDREN[sys.argv[2]](Setting(**json.loads(sys.argv[3])), *sys.argv[4:])
        return
    options = harness.parser(__doc__, rounds=2)
    options.add_argument("--data", default="pydoc", help="instructions (.json, .jsonl), or text")
    options.add_argument("--samples", type=int, default=320)
    options.add_argument("--held-out", type=int, default=32)
    options.add_argument("--max-length", type=int, default=256)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--second-lr", type=float, default=5e-4)
    chosen = vars(options.parse_args())
    rounds, second_lr, smoke = chosen.pop("rounds"), chosen.pop("second_lr"), chosen.pop("smoke")
    if smoke:
        rounds, chosen = 1, {**chosen, **SMOKE}
    data: dict[str, Any] = {
        "machine": harness.machine(),
        "versions": harness.versions("shortstack", "torch", "transformers", "accelerate", "peft"),
        "command": harness.command_line(),
    }
    with tempfile.TemporaryDirectory() as folder:
        model, layers = (harness.tiny(Path(folder) / "tiny"), "4-5") if smoke else ("demo", LAYERS)
        contest = Contest(Setting(model, layers, pruned="", **chosen), second_lr, Path(folder))
        contest.run(rounds)
    data |= {"setting": {**chosen, "data": Path(chosen["data"]).name}, "before": contest.judged, "runs": contest.runs}
    data["ratios"] = {aim.name: aim.ratio(contest.runs) for aim in AIMS}
    harness.save("heal", data, [__doc__.strip(), *told(contest)], smoke=smoke)


if __name__ == "__main__":
    main()
