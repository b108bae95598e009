"""The model that lm-evaluation-harness asks: its own for transformers, with likelihoods by shortstack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

from shortstack.data.questions import Request
from shortstack.decoder import Decoder
from shortstack.decoder.likelihoods import likelihoods
from shortstack.errors import InputError
from shortstack.evaluation.harness import GENERATED_TOGETHER, check_answer, hushed
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Quiet:
    """Before a model of the harness among the bases of a class: its bars would interleave with ours."""

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[misc]
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)  # type: ignore[misc]
        return answers


class HarnessModel(Quiet, HFLM):  # type: ignore[misc]  # lm-eval is untyped here
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
        self.computed_in = decoder.dtype

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        for each in requests:  # of a task in Python only these say how long answers may be
            check_answer(each.task_name, each.args[1], self.max_length)
        return super().generate_until(requests, disable_tqdm)

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
