"""What an encoder's network may look like: which widths must divide which, and what a tower takes. Pure checks, before anything is built.

transformers ignores a misspelt key and fails late, in a traceback, where widths do not fit each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {
    "vision": {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"},
    "text": {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"},
}


def rule(holds: bool, name: str, value: object, what: str) -> None:
    """:class:`ValueError` that says what ``name`` must be, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} = {value!r} must be {what}")


def check_text(given: Mapping[str, Any]) -> None:
    """The trunk: a Llama of a few widths. Rotary positions turn pairs of numbers, so a head has an even number of them."""
    _widths("text", given)
    heads, width = given.get("num_attention_heads", 1), given.get("hidden_size", 2)
    rule(width // heads % 2 == 0, "text.hidden_size", width, f"an even multiple of num_attention_heads = {heads}")
    shared = given.get("num_key_value_heads", heads)
    rule(heads % shared == 0, "text.num_key_value_heads", shared, f"a divisor of num_attention_heads = {heads}")


def check_tower(tower: str, given: Mapping[str, Any], picture_size: int, scale_factor: int) -> None:
    """The picture tower: a vision transformer, plain convolutions, or EfficientNet-Lite0, and pictures that fit its stride."""
    if tower == "vit":
        _widths("vision", given)
        patch = given.get("patch_size", 16)
        fits = picture_size % patch == 0 and picture_size // patch % scale_factor == 0
        what = f"a multiple of patch_size × scale_factor = {patch * scale_factor}"
    else:
        pixels = stride(tower, given)
        fits, what = picture_size % pixels == 0, f"a multiple of the tower's stride {pixels}"
    rule(fits, "inputs.picture_size", picture_size, what)


def stride(tower: str, given: Mapping[str, Any]) -> int:
    """Pixels a side that one place of the tower's last layer stands for; the vision transformer's patch."""
    return int(given.get("patch_size", 16)) if tower == "vit" else _conv(given) if tower == "conv" else _lite(given)


def _widths(table: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        rule(name in KEYS[table], f"{table}.{name}", value, f"named as one of {', '.join(sorted(KEYS[table]))}")
        rule(_whole(value) and value >= 1, f"{table}.{name}", value, "a whole number from 1")
    heads, width = given.get("num_attention_heads", 1), given.get("hidden_size", 1)
    rule(width % heads == 0, f"{table}.hidden_size", width, f"a multiple of num_attention_heads = {heads}")


def _conv(given: Mapping[str, Any]) -> int:
    """The stride of the convolutions: each width halves the picture."""
    _only(given, {"blocks", "channels", "stem"})
    channels, blocks, stem = given.get("channels", [1] * 4), given.get("blocks", 0), given.get("stem", 0)
    good = isinstance(channels, list) and 1 <= len(channels) <= 8 and all(_whole(c) and c >= 1 for c in channels)
    rule(good, "vision.channels", channels, "a list of one to eight widths")
    rule(_whole(blocks) and 0 <= blocks <= 64, "vision.blocks", blocks, "a whole number from 0 to 64")
    rule(_whole(stem) and 0 <= stem <= len(channels), "vision.stem", stem, f"a number of channels' widths from 0 to all {len(channels)}")
    return int(2 ** len(channels))


def _lite(given: Mapping[str, Any]) -> int:
    _only(given, {"frozen"})
    frozen = given.get("frozen", 0)
    rule(_whole(frozen) and 0 <= frozen <= 16, "vision.frozen", frozen, "a number of blocks from 0 to all 16")
    return 32


def _only(given: Mapping[str, Any], keys: set[str]) -> None:
    rule(set(given) <= keys, "vision", sorted(given), f"{' and '.join(sorted(keys))} alone for this tower")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
