"""Predictions of the exchange rate, written down before an encoder's click models are trained, and what was found afterwards.

A prediction is a tag of the encoder in the registry and an entry of ``MOON_HOME/exchange_rate.json``. None is changed or taken away: a
later one stands beside it, and what was found is added to the file once. Where a kill or a lost file left a prediction in one of the
two places, it is read from there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moon_ops.files import locked, remembered, write_text
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings

TAG = "exchange_rate.predicted."  # then the time; a tag's value is the prediction as JSON


@dataclass(frozen=True)
class Expected:
    """The AUC that one metric's line predicts, with its 95 % prediction interval; ``outside``: no encoder was measured that far out."""

    metric: str
    outcome: str
    value: float  # of the metric
    auc: float
    low: float
    high: float
    outside: bool


@dataclass(frozen=True)
class Prediction:
    """What the rate over ``encoders`` others says of an encoder's AUC, at a time before it was known; and, later, what was ``found``.

    ``terms`` are click recipe, seeds and windows: AUC measured on other terms answers another question.
    """

    encoder: int
    contract_id: str
    made_at: str  # ISO 8601
    encoders: int
    terms: dict[str, Any]
    expected: list[Expected]
    found: dict[str, float] = field(default_factory=dict)  # AUC by outcome

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Prediction:
        """From JSON."""
        return cls(**{**content, "expected": [Expected(**one) for one in content["expected"]]})


@contextlib.contextmanager
def writing(settings: Settings) -> Iterator[None]:
    """Read and write ``exchange_rate.json`` while no other process does."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with locked(settings.home / "exchange_rate.lock"):
        yield


def place(settings: Settings) -> Path:
    """The file of the rate."""
    return settings.home / "exchange_rate.json"


def known(settings: Settings) -> list[Prediction]:
    """All predictions that file and registry have, oldest first."""
    content = remembered(place(settings), "its predictions are read from the registry") or {}
    tagged = [
        json.loads(value)
        for tags in Registry(settings).entries(ENCODER).values()
        for name, value in sorted(tags.items())
        if name.startswith(TAG)
    ]
    both = [Prediction.read(one) for one in [*tagged, *content.get("predictions", [])]]
    made = {(one.contract_id, one.made_at): one for one in sorted(both, key=lambda one: bool(one.found))}  # one that was found wins
    return sorted(made.values(), key=lambda one: (one.made_at, one.encoder))


def add(settings: Settings, fresh: Prediction) -> Prediction:
    """Write a prediction down, in the registry first; the one that there is, where the same was predicted on the same terms before."""
    with writing(settings):
        before = known(settings)
        same = [one for one in before if replace(one, made_at=fresh.made_at, encoder=fresh.encoder) == fresh]
        chosen = same[0] if same else fresh
        told = json.dumps(asdict(replace(chosen, found={})), sort_keys=True)
        moment = dt.datetime.fromisoformat(chosen.made_at).astimezone(dt.UTC)
        Registry(settings).tag(ENCODER, fresh.encoder, {f"{TAG}{moment:%Y%m%dT%H%M%S%f}": told})
        content = remembered(place(settings), "the rate has to be measured again") or {}
        listed = before if same else [*before, fresh]
        write_text(place(settings), json.dumps(content | {"predictions": [asdict(one) for one in listed]}, indent=2) + "\n")
    return chosen


def checked(before: Sequence[Prediction], terms: Mapping[str, Any], aucs: Mapping[str, Mapping[str, float]]) -> list[Prediction]:
    """The predictions with what was found on the same ``terms``: AUC by outcome, by contract. What was found before stays."""
    return [replace(one, found=dict(aucs[one.contract_id])) if _is_answered(one, terms, aucs) else one for one in before]


def _is_answered(one: Prediction, terms: Mapping[str, Any], aucs: Mapping[str, object]) -> bool:
    return not one.found and one.contract_id in aucs and one.terms == dict(terms)


def table(listed: Sequence[Prediction]) -> str:
    """Markdown: what was predicted, beside what was found; empty where nothing was."""
    if not listed:
        return ""
    heads = ["encoder", "predicted at", "from", "outcome", "predicted", "95 % interval", "found", "inside"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in listed:
        for e in one.expected:
            found = one.found.get(e.outcome)
            inside = "" if found is None else "yes" if e.low <= found <= e.high else "**no**"
            beyond = ", outside the measured range" if e.outside else ""
            cells = [f"{one.encoder}", one.made_at, f"{e.metric} {e.value:.4f}{beyond}", e.outcome, f"{e.auc:.4f}"]
            cells += [f"[{e.low:.4f}, {e.high:.4f}]", "not yet" if found is None else f"{found:.4f}", inside]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
