"""What a candidate's recall above the champion's should be worth in AUC, by the exchange rate that was measured last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moon_ops.errors import StageError
from moon_ops.files import remembered
from moon_ops.metric_names import IMAGE_SEARCH, recall
from moon_ops.settings import Settings

if TYPE_CHECKING:
    from moon_ops.ctr.metrics import Difference

RECALL = recall(IMAGE_SEARCH)
EXPECTED = "exchange_rate/expected_auc_gain"


def worth(settings: Settings, gained: float, outcome: str = "overall") -> tuple[float, float, float]:
    """What ``gained`` recall@10 is worth in AUC, with its interval, by the last measured rate; :class:`StageError` if there is none for
    this ``outcome``."""
    known = _measured(settings)
    if known is None:
        raise StageError("the exchange rate was never measured", action="run `moon exchange-rate`")
    rate = next((r for r in known["slopes"] if r["metric"] == RECALL and r["outcome"] == outcome), None)
    if rate is None:
        raise StageError(f"the exchange rate was not measured on {outcome}", action="run `moon exchange-rate` on a window that has such")
    low, high = sorted((gained * rate["low"], gained * rate["high"]))
    return gained * rate["slope"], low, high


def _measured(settings: Settings) -> dict[str, Any] | None:
    found = remembered(settings.home / "exchange_rate.json", "it counts as never measured, until `moon exchange-rate` is run again")
    return found if found and "slopes" in found else None  # predictions alone are no rate


def in_auc(settings: Settings, candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> dict[str, float]:
    """What a candidate's recall above the champion's should be worth, for its evidence; empty where rate or recall is not known."""
    if champion is None or RECALL not in candidate or RECALL not in champion or _measured(settings) is None:
        return {}
    found = worth(settings, candidate[RECALL] - champion[RECALL])
    return {EXPECTED + end: figure for end, figure in zip(("", "_low", "_high"), found, strict=True)}


def disagreement(metrics: Mapping[str, float], measured: Difference | None) -> str:
    """A sentence where the interval that the exchange rate predicts and that of the measured AUC difference have nothing in common; else
    empty, also where one of them is not known.
    """
    if measured is None or EXPECTED not in metrics:
        return ""
    low, high = metrics[f"{EXPECTED}_low"], metrics[f"{EXPECTED}_high"]
    if not (measured.low > high or measured.high < low):  # what is no number disagrees with nothing
        return ""
    more = "more" if measured.low > high else "less"
    return (
        f"AUC changed by {measured.value:+.4f} [{measured.low:+.4f}, {measured.high:+.4f}], {more} than the change of recall is worth by "
        f"the exchange rate, {metrics[EXPECTED]:+.4f} [{low:+.4f}, {high:+.4f}]: look whether something else changed too, or measure the "
        "rate again with `moon exchange-rate`"
    )
