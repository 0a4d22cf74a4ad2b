"""What a shop's own words mean: names of events, states of items, names of columns.

The common ones are known. Others stand in ``moon.toml`` beside the files, so that whoever ingests the directory reads it alike, or are
given with the command::

    encoding = "windows-1252"
    [events]
    wishlist = "cart"
    [status]
    paused = "deleted"
    [columns]
    sku = "item_id"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.lake.reading import encoding as encodings
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.schemas import EVENTS

FILE = "moon.toml"
STATES = ("active", "deleted")
KNOWN_EVENTS = {
    **dict.fromkeys(("impression", "view_item_list", "product_list_viewed", "product_impression"), "impression"),
    **dict.fromkeys(("click", "view_item", "select_item", "product_viewed", "product_clicked"), "click"),
    **dict.fromkeys(("cart", "add_to_cart", "addtocart", "product_added", "product_added_to_cart"), "cart"),
    **dict.fromkeys(("purchase", "ecommerce_purchase", "order_completed", "checkout_completed"), "purchase"),
    **dict.fromkeys(("cancel", "cancelled", "canceled", "cancellation", "order_cancelled", "order_canceled"), "cancel"),
    **dict.fromkeys(("return", "returned", "product_returned", "refund", "refunded", "order_refunded"), "return"),
}
KNOWN_STATES = {
    **dict.fromkeys(("active", "enabled", "published", "publish", "live"), "active"),
    **dict.fromkeys(("deleted", "draft", "archived", "inactive", "disabled", "discontinued", "removed", "unpublished", "trash"), "deleted"),
}


@dataclass(frozen=True)
class Meanings:
    """Words → what they mean here; ``columns``: a shop's names → ours. Letter case, and space or hyphen for ``_``, do not count."""

    events: Mapping[str, str] = field(default_factory=lambda: KNOWN_EVENTS)
    status: Mapping[str, str] = field(default_factory=lambda: KNOWN_STATES)
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None

    def meant(self, column: Any, words: Mapping[str, str]) -> Any:
        """The column with known words replaced by what they mean; others stay, for the reason that quotes them."""
        encoded = column.combine_chunks().dictionary_encode() if isinstance(column, pa.ChunkedArray) else column.dictionary_encode()
        found = pa.array([words.get(bare(word), word) for word in encoded.dictionary.to_pylist()], pa.string())
        return found.take(encoded.indices)


PLAIN = Meanings()


def of(directory: Path, *, events: Sequence[str] = (), status: Sequence[str] = (), encoding: str | None = None) -> Meanings:
    """What ``moon.toml`` of the directory says, and above it what the command says as ``WORD=MEANING``."""
    said = _file(directory / FILE)
    given = {"events": _given("event", events), "status": _given("status", status)}
    return Meanings(
        _words("events", KNOWN_EVENTS, said.get("events", {}) | given["events"], EVENTS),
        _words("status", KNOWN_STATES, said.get("status", {}) | given["status"], STATES),
        {str(theirs): str(ours) for theirs, ours in said.get("columns", {}).items()},
        encodings.known(found) if (found := encoding or said.get("encoding")) else None,
    )


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as broken:
        raise InputError(f"{path} cannot be read ({broken}); nothing was ingested", action="mend the file") from broken
    kinds = {"encoding": str, "events": dict, "status": dict, "columns": dict}
    if wrong := [key for key, value in said.items() if not isinstance(value, kinds.get(key, ()))]:
        raise InputError(f"{path}: {wrong[0]} = {said[wrong[0]]!r} is not understood", action=f"it may have {', '.join(kinds)}")
    return said


def _given(option: str, pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        word, sign, meaning = pair.rpartition("=")
        if not sign or not word.strip():
            raise InputError(f"--{option} {pair!r} is not WORD=MEANING", action="write, for example, --event wishlist=cart")
        found[word] = meaning.strip()
    return found


def _words(key: str, known: Mapping[str, str], said: Mapping[str, str], allowed: Sequence[str]) -> dict[str, str]:
    for word, meaning in said.items():
        if meaning not in allowed:
            raise InputError(f"{key}.{word} = {meaning!r} is not one of {', '.join(allowed)}", action="name one of them")
    return {**known, **{bare(word): meaning for word, meaning in said.items()}}
