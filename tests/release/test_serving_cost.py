"""What a release costs: figures by a clock that the test moves, so that no machine's mood decides; and that real ones are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moon_ops.metric_names import serving
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import CTR, Registry
from moon_ops.release import clicks, evaluation
from moon_ops.release.comparison import Measured
from moon_ops.release.serving_cost import Served, timed, with_costs
from moon_ops.release.windows import windows
from moon_ops.settings import Settings


class Clock:
    """Seconds that pass only while something is called; ``order`` is who was called."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *milliseconds: float) -> Callable[[], None]:
        """Something that takes so long, each time the next figure, and at last always the last."""
        left = list(milliseconds)

        def takes() -> None:
            self.order.append(name)
            self.now += (left.pop(0) if len(left) > 1 else left[0]) / 1000

        return takes


def test_the_figure_is_the_median_of_medians_and_the_first_call_is_not_counted() -> None:
    clock = Clock()
    served = Served({"embed": [clock.call("a", 900, 4, 4, 4, 80, 4), clock.call("b", 900, 6), clock.call("c", 900, 8)]}, {"bytes": 7.0})
    (found,) = timed([served], clock=clock)
    assert found[serving("embed_ms")] == pytest.approx(6)
    assert 8 < found[serving("embed_p95_ms")] < 80
    assert found[serving("bytes")] == 7.0
    assert serving("score_ms") not in found


def test_releases_take_turns_call_by_call_and_nobody_is_always_first() -> None:
    clock = Clock()
    timed([Served({"embed": [clock.call(name, 1)] * 2}, {}) for name in ("new", "old")], rounds=2, clock=clock)
    assert clock.order[4:] == ["new", "old", "new", "old", "old", "new", "old", "new"]


def test_a_machine_that_slows_down_slows_both() -> None:
    """Ten times slower from the third round on: the candidate is still half as fast as the champion."""
    clock = Clock()
    new, old = (Served({"embed": [clock.call(name, 1, *[ms] * 2, ms * 10)]}, {}) for name, ms in (("new", 2.0), ("old", 1.0)))
    left, right = timed([new, old], clock=clock)
    assert left[serving("embed_ms")] / right[serving("embed_ms")] == pytest.approx(2)


def test_a_slow_encoder_is_measured_once_and_no_more() -> None:
    clock = Clock()
    (found,) = timed([Served({"embed": [clock.call("slow", 30_000)]}, {})], seconds=20, clock=clock)
    assert found[serving("embed_ms")] == pytest.approx(30_000)
    assert len(clock.order) == 2


def test_a_real_release_has_all_figures_and_recorded_ones_are_dropped(released: Settings) -> None:
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    searches = evaluation.evaluate(released, 1, times)
    _, scored = clicks.judged_ctr(released, 1, Registry(released).fetch(CTR, 1), times)
    recorded = {"mine": 1.0, serving("embed_ms"): -1.0, serving("score_ms"): -1.0}
    found, bare = with_costs(released, [(1, 1, Measured(recorded, searches, scored)), (1, 1, Measured(recorded))])
    names = ("embed_ms", "embed_p95_ms", "score_ms", "score_p95_ms", "model_bytes", "index_bytes", "bytes")
    assert set(found.metrics) == {"mine", *map(serving, names)}
    assert all(value > 0 for value in found.metrics.values())
    assert serving("score_ms") not in bare.metrics, "there is nothing to score; what was recorded is of another hour"
    assert bare.metrics[serving("embed_ms")] > 0
    assert (found.searches, found.clicks) == (searches, scored)
