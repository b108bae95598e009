"""Options: their ranges, choices and amounts, and the option that an error names."""

from typing import Annotated

import pytest
from pydantic import Field

from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.options import Amount, OneOf, no_choice, options


@options
class Made:
    """A component with an option of each kind."""

    step: int = Field(1, ge=1, description="A count.")
    share: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False, description="A share.")
    decay: Annotated[str, OneOf(("linear", "cosine"))] = Field("linear", description="A name.")
    limit: int | None = Field(None, ge=1, le=9, description="May be left out.")
    many: Amount | None = Field(None, description="A count, or a share.")


@pytest.mark.parametrize(
    "values",
    [
        *({"step": 0}, {"step": "x"}, {"step": 1.5}, {"step": None}),
        *({"share": 1.0}, {"share": float("nan")}, {"share": float("inf")}),
        *({"decay": "cosin"}, {"decay": 3}, {"limit": 10}),
        *({"many": "0%"}, {"many": "101%"}, {"many": 1.5}, {"many": "some"}),
        {"zork": 1},
    ],
)
def test_wrong_value_is_an_error_about_its_option(values):
    with pytest.raises(InputError) as refused:
        Made(**values)
    assert refused.value.option == next(iter(values))


@pytest.mark.parametrize(("typed", "value"), [("10%", 0.1), (0.5, 0.5), ("1.0", 1.0), ("7", 7), (7, 7), (None, None)])
def test_amount_is_a_count_or_a_share(typed, value):
    found = Made(many=typed).many
    assert (type(found), found) == (type(value), value)


def test_nearest_choice_is_named():
    assert no_choice("cosin", ("linear", "cosine")) == "did you mean cosine?"
    assert no_choice("adamw", ("adamw_torch", "adamw_8bit")) == "did you mean adamw_torch?"
    assert no_choice("zork", ("a", "b")) == "give one of a, b"


def test_device_map_excludes_a_device():
    for values in ({"device": "cuda"}, {"stream": True}):
        with pytest.raises(InputError) as refused:
            Compute(device_map="auto", **values)
        assert refused.value.option == "device_map"
