"""The gate: its interval against the definition, its figures by hand, and what it must do whatever the answers are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferd_training.errors import ModelError
from inferd_training.gate import MARGIN, Comparison, compare, interval, passes

Z = 1.959963984540054
LABELS = ("cat", "dog", "eel")


def comparison(lost: int, gained: int, examples: int) -> Comparison:
    """Two models on `examples` examples of one class, of which so many changed sides."""
    before, after = np.zeros(examples, np.int64), np.zeros(examples, np.int64)
    after[:lost] = 1
    before[lost : lost + gained] = 1
    return compare(before, after, np.zeros(examples, np.uint8), LABELS)


def test_figures_by_hand() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.uint8)
    before = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    after = np.array([0, 0, 1, 0, 1, 1, 1, 0, 0, 2])
    found = compare(before, after, truth, LABELS)
    assert (found.examples, found.lost, found.gained) == (10, 3, 1)
    assert (found.accuracy_before, found.accuracy_after) == (0.8, 0.6)
    assert found.drop == 20.0
    # The last answer is wrong both times and yet another: that is no agreement.
    assert found.agreement == 0.5
    # Cats: one lost, one gained. Dogs: two of six lost. There are no eels, whose recall is not known.
    assert (found.worst_label, found.worst_change) == ("dog", pytest.approx(-100 / 3))
    assert found.as_json()["drop"] == 20.0


def most_likely(lost: int, gained: int, examples: int, difference: float) -> float:
    """The share of `gained` under which the counts are most likely, the shares differing by `difference`; by trial."""
    shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)[1:-1]
    likelihood = (
        lost * np.log(shares + difference)
        + gained * np.log(shares)
        + (examples - lost - gained) * np.log(1 - 2 * shares - difference)
    )
    return float(shares[likelihood.argmax()])


@pytest.mark.parametrize(("lost", "gained", "examples"), [(30, 20, 1000), (2, 9, 60), (120, 130, 10_000), (1, 5, 12)])
def test_the_interval_ends_where_the_score_test_rejects(lost: int, gained: int, examples: int) -> None:
    ends = interval(lost, gained, examples)
    for end, sign in zip(ends, (1, -1), strict=True):
        difference = end / 100
        share = most_likely(lost, gained, examples, difference)
        variance = examples * (2 * share + difference - difference**2)
        score = (lost - gained - examples * difference) / math.sqrt(variance)
        assert score == pytest.approx(sign * Z, rel=1e-3)


def test_no_change_is_not_certainty() -> None:
    low, high = interval(0, 0, 100)
    assert high == pytest.approx(100 * Z**2 / (100 + Z**2))
    assert low == pytest.approx(-high)


def test_the_interval_covers_the_true_drop() -> None:
    # 400 examples, 4 % lost, 2 % gained: a drop of 2 points.
    drawn = np.random.default_rng(0).multinomial(400, [0.04, 0.02, 0.94], size=1000)
    ends = [interval(int(lost), int(gained), 400) for lost, gained, _ in drawn]
    covered = np.mean([low <= 2.0 <= high for low, high in ends])
    assert 0.93 < covered < 0.97


counts = st.integers(1, 2000).flatmap(
    lambda examples: st.integers(0, examples).flatmap(
        lambda lost: st.tuples(st.just(lost), st.integers(0, examples - lost), st.just(examples))
    )
)


@given(counts)
def test_the_interval_holds_the_drop_and_agrees_with_mcnemar(drawn: tuple[int, int, int]) -> None:
    lost, gained, examples = drawn
    low, high = interval(lost, gained, examples)
    drop = 100 * (lost - gained) / examples
    assert -100 <= low <= drop + 1e-9
    assert drop - 1e-9 <= high <= 100
    # The other way round it is the same interval, mirrored.
    mirrored = interval(gained, lost, examples)
    assert mirrored == (pytest.approx(-high, abs=1e-9), pytest.approx(-low, abs=1e-9))
    if lost + gained:
        statistic = (lost - gained) / math.sqrt(lost + gained)
        # On the edge itself, which a rounding error decides, either answer is right.
        if abs(abs(statistic) - Z) > 1e-6:
            assert (low > 0 or high < 0) == (abs(statistic) > Z)


answers = st.integers(1, 60).flatmap(
    lambda count: st.tuples(*(st.lists(st.integers(0, 2), min_size=count, max_size=count) for _ in range(3)))
)


@given(answers, st.floats(0, 100))
def test_whatever_the_answers_are(drawn: tuple[list[int], list[int], list[int]], budget: float) -> None:
    before, after, truth = (np.array(part) for part in drawn)
    found = compare(before, after, truth, LABELS)
    assert found.drop == pytest.approx(100 * (found.accuracy_before - found.accuracy_after))
    assert found.low <= found.drop + 1e-9
    assert found.drop - 1e-9 <= found.high
    assert -100 <= found.worst_change <= -found.drop + 1e-9
    reason = passes(found, budget)
    assert (reason == "") == (found.drop <= budget and found.high <= budget + MARGIN)
    # Who allows more is refused no more.
    if not reason:
        assert passes(found, budget + 1) == ""
    # The order of the examples means nothing.
    turned = compare(before[::-1], after[::-1], truth[::-1], LABELS)
    assert (turned.drop, turned.high, turned.agreement) == (found.drop, found.high, found.agreement)


@settings(deadline=None)
@given(st.integers(957, 5000))
def test_a_model_passes_against_itself(examples: int) -> None:
    assert passes(comparison(0, 0, examples), 0.1) == ""


def test_the_budget_is_kept_exactly() -> None:
    # Ten of ten thousand are 0.1 points, and allowed; eleven are more.
    assert passes(comparison(10, 0, 10_000), 0.1) == ""
    reason = passes(comparison(11, 0, 10_000), 0.1)
    assert reason.startswith("the accuracy falls by 0.11 points (100.00 % to 99.89 % on 10000 test examples), where at")
    assert "at most 0.1 were allowed" in reason


def test_few_examples_and_many_changes_are_not_trusted() -> None:
    few = passes(comparison(0, 0, 24), 0.1)
    assert few.startswith("a drop of the accuracy by 13.8 points is not ruled out")
    assert "give more test examples" in few
    assert passes(comparison(0, 0, 24), 14) == ""
    # What the margin is worth on 10,000 examples, as the module says.
    assert passes(comparison(119, 109, 10_000), 0.1) == ""
    assert passes(comparison(121, 111, 10_000), 0.1) != ""
    many = passes(comparison(500, 500, 10_000), 0.1)
    assert "1000 of them right before or after only" in many
    assert passes(comparison(450, 550, 10_000), 0.1) == ""


@pytest.mark.parametrize("budget", [-0.1, math.nan, math.inf])
def test_a_budget_that_is_none(budget: float) -> None:
    with pytest.raises(ModelError, match="finite number from 0 was expected"):
        passes(comparison(0, 0, 10), budget)


@pytest.mark.parametrize(
    ("before", "after", "truth", "message"),
    [
        ([0, 1], [0], [0, 1], "the second model's answers are int64 \\[1\\], where whole numbers \\[2\\]"),
        ([0, 3], [0, 1], [0, 1], "the first model's answers hold classes from 0 to 3, where 0 to 2 were expected"),
        ([0, 1], [0, 1], [0, -1], "the true classes hold classes from -1 to 0"),
        ([], [], [], "at least one"),
        ([[0, 1]], [0, 1], [0, 1], "the first model's answers are int64 \\[1, 2\\]"),
        ([0.0, 1.0], [0, 1], [0, 1], "the first model's answers are float64"),
    ],
)
def test_answers_that_do_not_belong_together(
    before: list[int], after: list[int], truth: list[int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        compare(np.array(before), np.array(after), np.array(truth), LABELS)
