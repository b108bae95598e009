"""How much a task asks of a model: counted on some of its documents, as the harness words them; nothing is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shortstack.data.questions import encode_request
from shortstack.data.tokens import encode
from shortstack.decoder.likelihoods import passing
from shortstack.evaluation.harness import GENERATED_TOGETHER, ROOM, SEED, Loaded, hushed
from shortstack.evaluation.task_results import Amount

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOOKED_AT = 32  # documents of each task


def amount_of(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> Amount:
    """How much the documents of a task ask, as the first of them do."""
    with hushed():
        found = [_amount(task, tokenizer, limit) for task in loaded.tasks.values()]
    passed, scored, steps = (sum(column) for column in zip(*found, strict=True))
    return Amount(passed, scored, steps, GENERATED_TOGETHER)


def _amount(task: Any, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> tuple[float, float, float]:
    """Tokens that pass the layers, those that are scored, and steps of writing."""
    documents = min(len(task.eval_docs), limit or len(task.eval_docs))
    looked_at = min(documents, LOOKED_AT)
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests(limit=looked_at)
    of_all = documents / looked_at

    def asked(kind: str) -> list[Any]:
        return [instance.args for instance in task.instances if instance.request_type == kind]

    passed, scored = passing([encode_request(tokenizer, *args) for args in asked("loglikelihood")])
    pages = sum(len(encode(tokenizer, text)) for (text,) in asked("loglikelihood_rolling"))
    prompts = sum(len(encode(tokenizer, prompt)) for prompt, _ in asked("generate_until"))
    rooms = sum(settings.get("max_gen_toks", ROOM) for _, settings in asked("generate_until"))
    return (
        (passed + pages + prompts) * of_all,
        (scored + pages) * of_all,
        rooms * of_all / GENERATED_TOGETHER,
    )
