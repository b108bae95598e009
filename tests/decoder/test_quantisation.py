"""Four bits: how many bytes hold a matrix, and how far its outputs move."""

import pytest
import torch
from torch import nn

from shortstack.decoder.quantisation import four_bit


def test_four_bit_halves_a_byte_per_weight_and_moves_outputs_little():
    pytest.importorskip("bitsandbytes")
    matrix = nn.Linear(64, 128, dtype=torch.bfloat16)
    inputs = torch.randn(8, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    expected = matrix(inputs).float()
    four = four_bit(matrix, needed_by="qlora")
    assert four.weight.numel() == 64 * 128 // 2
    off = (four(inputs).float() - expected).norm() / expected.norm()
    assert 0 < off < 0.2
