"""A few examples and what is frozen of them, and a short healing, for tests of what trains."""

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder import Decoder
from shortstack.healing import HealingConfig
from shortstack.healing.frozen import Freezer
from shortstack.healing.learner import Learner

EXAMPLES = [
    Example(tuple(range(3, 15)), (True,) * 12),
    Example(tuple(range(20, 27)), (False,) * 3 + (True,) * 4),
    Example((5, 9, 30, 31), (False, False, False, True)),
]
SHORT = HealingConfig("pydoc", max_length=32, max_samples=16, num_train_epochs=1, learning_rate=1e-2)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def learning(checkpoint: Checkpoint, method, config=SHORT, teacher=None, examples=EXAMPLES):
    """Return examples with what is frozen of them, and the module that learns from them, in float32."""
    freezer = Freezer(checkpoint, torch.float32, "cpu", config, teacher)
    first = method.first(checkpoint)
    frozen = freezer.fill(freezer.planned(examples, first))
    load = Decoder.tail if first else Decoder.load
    decoder = load(checkpoint, *([first] if first else []), dtype=torch.float32)
    how = {"temperature": config.temperature, "next_token_weight": config.next_token_weight}
    return frozen, Learner(decoder, first, method.prepare(checkpoint, decoder), **how)
