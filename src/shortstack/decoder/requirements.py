"""The estimate of memory in the form of dry runs, which is being replaced by estimate_memory()."""

from __future__ import annotations

from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.memory import LOGIT_COPIES as LOGIT_COPIES
from shortstack.decoder.memory import estimate_memory
from shortstack.machine.device import Compute
from shortstack.machine.memory import Requirements


def requirements(checkpoint: Checkpoint, compute: Compute, **how: Any) -> Requirements:
    needed = estimate_memory(checkpoint, compute, **how)
    return Requirements(needed.nbytes, streamed=needed.streamed, device=needed.device)


def writing_requirements(checkpoint: Checkpoint, compute: Compute) -> Requirements:
    return requirements(checkpoint, compute, writes=True)
