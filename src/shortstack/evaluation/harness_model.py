"""The model that lm-evaluation-harness asks: its own for transformers, with likelihoods by shortstack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from shortstack.data.questions import Request
from shortstack.decoder import Decoder
from shortstack.decoder.likelihoods import likelihoods
from shortstack.errors import InputError
from shortstack.evaluation.harness import hushed
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


GENERATED_TOGETHER = 16  # prompts, where no batch size is named
ROOM = 256  # tokens of an answer, where a task names no other number


class HarnessModel(HFLM):  # type: ignore[misc]  # lm-eval is untyped here
    """The harness's model, with likelihoods by shortstack; batch: sequences in a forward, None for a choice by tokens."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int | None = None,
        max_length: int | None = None,
        progress: Progress = silent,
    ) -> None:
        with hushed():
            super().__init__(
                pretrained=decoder.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch or GENERATED_TOGETHER,
                max_length=max_length,
            )
        self.decoder, self.batch, self.progress = decoder, batch, progress

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)  # the harness's bars would interleave with ours

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any]) -> Any:
        for each in requests:
            self._check_answer(each.task_name, each.args[1])
        return super().generate_until(requests, disable_tqdm=True)

    def _check_answer(self, task: str, settings: Mapping[str, Any]) -> None:
        """Refuse answers that may be as long as a prompt with its answer: no prompt has room beside them."""
        room = int(normalize_gen_kwargs(dict(settings), ROOM)["max_gen_toks"])
        if room >= self.max_length:
            raise InputError(
                f"{self.max_length}; where it is not named it is what the model has positions for",
                expected=f"more than the {room} tokens that an answer of {task} may have",
                fix=f"leave {task} out, or raise max_length to {2 * room} where the model computes its positions",
                option="max_length",
            )

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy) of each (text, context, continuation), too long ones cut on the left."""
        cut = [self._request(context, continuation) for _, context, continuation in requests]
        answers = likelihoods(self.decoder, cut, batch=self.batch, progress=self.progress)
        return [(answer.value, answer.greedy) for answer in answers]

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        if len(continuation) > self.max_length:
            raise InputError(
                self.max_length,
                expected=f"room for an answer of {len(continuation)} tokens",
                fix=f"ask for {2 * len(continuation)} or more, or leave it out",
                option="max_length",
            )
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return Request(ids, len(ids) - len(continuation))
