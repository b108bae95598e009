"""Keep it or not, from numbers on either side of every bound."""

import pytest

from shortstack.evaluation.degeneration import Collapse, Fluency
from shortstack.study.verdict import verdict


def written(texts):
    return Collapse(Fluency.of(texts), '"the the"').to_dict()


VARIED = written([[place + 64 * number for place in range(64)] for number in range(8)])
LOOPS = written([[1, 2] * 32] * 8)
SILENCE = written([[]] * 8)


def found(perplexity, right=(), *, collapse=VARIED):
    probes = {str(place): {"value": each, "stderr": 0.03} for place, each in enumerate(right)}
    return {
        "perplexity": {"a.txt": {"value": perplexity}},
        "probes": probes,
        "collapse": collapse,
    }


@pytest.mark.parametrize(
    ("last", "keep"),
    [
        (found(15, (0.8, 0.4)), True),
        (found(15.1, (0.8, 0.4)), None),
        (found(15, (0.7, 0.4)), None),
        (found(30, (0.8, 0.4)), None),
        (found(30.1, (0.8, 0.4)), False),
        (found(10, (0.5, 0.1)), False),
        (found(10, (0.8, 0.4), collapse=LOOPS), False),
    ],
)
def test_what_lies_within_the_bounds_is_kept_and_what_lies_beyond_is_not(last, keep):
    assert verdict(found(10, (1.0, 0.4)), last).keep is keep


def test_the_numbers_are_said_the_worst_text_first():
    base, last = found(10, (1.0, 0.5)), found(12, (0.8, 0.4), collapse=LOOPS)
    base["perplexity"]["b.txt"], last["perplexity"]["b.txt"] = {"value": 10}, {"value": 14}
    said = str(verdict(base, last))
    assert said.startswith("Do not keep it. Perplexity on b.txt is 1.40 times")
    assert "60.0% ± 2.1% are right, where the unpruned model has 75.0%" in said
    assert 'collapsed: "the the"' in said


@pytest.mark.parametrize("as_the_unpruned", [LOOPS, SILENCE], ids=["loops", "silence"])
def test_one_that_writes_as_its_unpruned_model_does_has_not_collapsed(as_the_unpruned):
    assert as_the_unpruned["collapsed"], "beside a small model that works"
    base, last = (found(10, (1.0, 0.5), collapse=as_the_unpruned) for _ in range(2))
    assert verdict(base, last).keep
    assert "collapsed" not in str(verdict(base, last))


def test_where_the_unpruned_model_was_not_looked_at_a_small_one_that_works_stands_for_it():
    assert verdict(found(10, collapse=None), found(10, collapse=LOOPS)).keep is False
    assert verdict(found(10, collapse=None), found(10, collapse=VARIED)).keep


def test_without_probes_perplexity_decides():
    assert verdict(found(10), found(14)).keep
    assert "writing tasks" not in str(verdict(found(10), found(14)))


@pytest.mark.parametrize("perplexity", [None, float("inf"), float("nan")])
def test_a_perplexity_beyond_all_numbers_is_not_kept(perplexity):
    assert verdict(found(10), found(perplexity)).keep is False


def test_tasks_whose_metric_is_no_share_are_no_percentage():
    tasks = {
        "piqa": {"value": 0.6, "stderr": 0.02, "metric": "acc"},
        "wikitext": {"value": 20.0, "stderr": None, "metric": "word_perplexity"},
    }
    said = str(verdict({**found(10), "tasks": tasks}, {**found(11), "tasks": tasks}))
    assert (
        "Of piqa 60.0% ± 2.0% are right, where the unpruned model has 60.0% ± 2.0%: 100.0% ± 4.7% of it is kept."
        in said
    )
    assert "wikitext" not in said
