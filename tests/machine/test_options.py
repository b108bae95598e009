"""Options: one range checker for every front end, and what it says."""

from dataclasses import dataclass

import pytest

from shortstack.errors import InputError
from shortstack.machine.options import changed_options, check_choice_of, check_options, option


@dataclass(frozen=True)
class Made:
    """A component with an option of each kind."""

    step: int = option(help="No default.", default=1, minimum=1)
    share: float = option(0.5, help="A share.", above=0, below=1)
    decay: str = option("linear", help="A name.", choices=("linear", "cosine"))
    limit: int | None = option(None, help="May be left out.", minimum=1, maximum=9)

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step": 0}, "step: expected at least 1, found 0. To fix it: take the default, 1."),
        ({"share": 1.0}, "share: expected a number above 0 and below 1, found 1.0. To fix it: take the default, 0.5."),
        ({"share": float("nan")}, "expected a number above 0 and below 1, found nan"),
        ({"share": float("inf")}, "expected a number above 0 and below 1, found inf"),
        ({"decay": "cosin"}, "expected one of linear, cosine, found 'cosin'. To fix it: did you mean cosine?"),
        ({"decay": "zork"}, "found 'zork'. To fix it: name one of these."),
        (
            {"limit": 10},
            "limit: expected at least 1 and at most 9, found 10. To fix it: give such a number, or leave it out.",
        ),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_way_out(values, said):
    with pytest.raises(InputError) as refused:
        Made(**values)
    assert said in str(refused.value)
    assert refused.value.option == next(iter(values))


def test_the_beginning_of_a_name_is_nearer_than_a_shorter_one():
    with pytest.raises(InputError, match=r"did you mean adamw_torch\?"):
        check_choice_of("optimizer", "adamw", ("adamw_torch", "adamw_8bit"))


def test_what_is_changed_is_known():
    assert changed_options(Made()) == {}
    assert changed_options(Made(share=0.25, limit=2)) == {"share": 0.25, "limit": 2}
