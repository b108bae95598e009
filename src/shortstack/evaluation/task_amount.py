"""How much a task asks of a model: counted on some of its documents, as the harness words them; nothing is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shortstack.data.questions import request
from shortstack.data.tokens import encode
from shortstack.decoder.likelihoods import passing
from shortstack.evaluation.harness import GENERATED_TOGETHER, ROOM, SEED, LoadedTask, asked_of, hushed
from shortstack.evaluation.task_results import Amount

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOOKED_AT = 32  # documents of each task


def amount_of(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, limit: float | None = None) -> Amount:
    """How much the documents of a task ask, as the first of them do."""
    with hushed():
        amounts = [_amount(task, tokenizer, limit) for task in loaded.tasks.values()]
    passed, scored, steps = (sum(column) for column in zip(*amounts, strict=True))
    return Amount(passed, scored, steps, GENERATED_TOGETHER)


def _amount(task: Any, tokenizer: PreTrainedTokenizerBase, limit: float | None) -> tuple[float, float, float]:
    """Tokens that pass the layers, those that are scored, and steps of writing."""
    documents = asked_of(task, limit)
    looked_at = min(documents, LOOKED_AT)
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests(limit=looked_at)
    scale = documents / looked_at

    def requests_of(kind: str) -> list[Any]:
        return [instance.args for instance in task.instances if instance.request_type == kind]

    passed, scored = passing([request(tokenizer, *args) for args in requests_of("loglikelihood")])
    pages = sum(len(encode(tokenizer, text)) for (text,) in requests_of("loglikelihood_rolling"))
    prompts = sum(len(encode(tokenizer, prompt)) for prompt, _ in requests_of("generate_until"))
    rooms = sum(settings.get("max_gen_toks", ROOM) for _, settings in requests_of("generate_until"))
    return (
        (passed + pages + prompts) * scale,
        (scored + pages) * scale,
        rooms * scale / GENERATED_TOGETHER,
    )
