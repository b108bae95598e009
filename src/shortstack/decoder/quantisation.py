"""Weight-only quantisation of a loaded matrix, in memory, by bitsandbytes."""

from __future__ import annotations

from torch import nn

from shortstack.errors import InputError, one_line
from shortstack.machine.options import install


def four_bit(matrix: nn.Module, *, needed_by: str, gradients: bool = False) -> nn.Module:
    """Return a linear layer with its weight in nf4, double-quantised (Dettmers et al., arXiv 2305.14314), on its device.

    needed_by: what needs it, as an error names it. gradients: whether they flow through it to what comes before.
    """
    try:
        from bitsandbytes import nn as kinds
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"{needed_by} needs bitsandbytes for 4-bit weights ({one_line(error)}); {install('quant')}"
        raise InputError(reason, option="method") from error
    assert isinstance(matrix, nn.Linear)  # noqa: S101  the caller has looked
    four = kinds.Linear4bit(
        matrix.in_features,
        matrix.out_features,
        bias=matrix.bias is not None,
        compute_dtype=matrix.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    four.weight = kinds.Params4bit(
        matrix.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=four
    )
    four.bias = matrix.bias
    if gradients:
        four.support_avx512bf16_for_cpu = False  # else evaluating packs the matrix for a product without a gradient
    return four.to(matrix.weight.device)  # type: ignore[no-any-return]
