"""Whether the head trains; where it is the embedding matrix, only as a matrix of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.errors import InputError, parameter


@dataclass(frozen=True)
class Head:
    """trained: None is what the method does by itself. untied: a head tied to the embedding becomes a matrix of its own."""

    trained: bool | None = None
    untied: bool = False

    def trains(self, checkpoint: Checkpoint, *, default: bool) -> bool:
        """Whether the head is among what trains. A tied one never is, unless it is untied.

        Raises:
            InputError: a tied head is asked to train, or a head of its own to be untied.
        """
        tied = checkpoint.anatomy.tied
        if self.untied and not tied:
            raise InputError(
                parameter("untie_head"),
                expected="a head tied to the embedding",
                found="a head of its own",
                fix="leave the option out",
            )
        if self.trained and tied and not self.untied:
            raise InputError(
                parameter("head"),
                expected="a head of its own to train",
                found="one tied to the embedding",
                fix=f"add {parameter('untie_head', True)}, or leave the head frozen",
            )
        if self.trained is not None:
            return self.trained
        return self.untied or (default and not tied)

    def prepare(self, decoder: Decoder) -> None:
        """Give the head a matrix of its own, if it is to have one."""
        head = decoder.model.get_submodule(decoder.anatomy.head)
        if self.untied:
            head.weight = nn.Parameter(head.weight.detach().clone())

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        """Bytes the healed checkpoint has more than the pruned one: an untied head is a second embedding."""
        if not self.untied:
            return 0
        return round(checkpoint.vocabulary * checkpoint.width * checkpoint.weight_bytes / checkpoint.parameters)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The config fields that give the head a matrix of its own, in a multimodal config at both levels."""
        if not self.untied:
            return {}
        key, untied = checkpoint.anatomy.text_key, {"tie_word_embeddings": False}
        return {**untied, key: {**checkpoint.config[key], **untied}} if key else untied
