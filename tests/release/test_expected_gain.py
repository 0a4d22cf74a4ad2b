"""The exchange rate beside the measured AUC: a note where they contradict each other, and nothing else."""

from __future__ import annotations

import pytest

from moon_ops.ctr.metrics import Difference
from moon_ops.release.expected_gain import EXPECTED, disagreement

PREDICTED = {EXPECTED: 0.004, f"{EXPECTED}_low": 0.002, f"{EXPECTED}_high": 0.006}


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-0.03, -0.01, "less than"), (0.007, 0.02, "more than"), (-0.01, 0.0021, ""), (0.005, 0.02, "")]
)
def test_intervals_without_a_common_value_are_told(low: float, high: float, said: str) -> None:
    found = disagreement(PREDICTED, Difference((low + high) / 2, low, high, 0.01))
    assert bool(found) == bool(said)
    assert said in found


def test_the_sentence_names_both_intervals() -> None:
    assert disagreement(PREDICTED, Difference(-0.02, -0.03, -0.01, 0.01)).startswith(
        "AUC changed by -0.0200 [-0.0300, -0.0100], less than the change of recall is worth by the exchange rate, "
        "+0.0040 [+0.0020, +0.0060]"
    )


def test_what_is_not_known_disagrees_with_nothing() -> None:
    nan = float("nan")
    assert disagreement(PREDICTED, None) == disagreement({}, Difference(-0.02, -0.03, -0.01, 0.01)) == ""
    assert disagreement(PREDICTED, Difference(nan, nan, nan, nan)) == ""
