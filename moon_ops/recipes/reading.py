"""Read a recipe ``models/<name>.toml``: the recipe that it extends, changes from the command line, and one line for what is wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from moon_ops.columns import Feature, together
from moon_ops.errors import SettingsError
from moon_ops.recipes.caps import Caps, Counting
from moon_ops.recipes.costs import Costs
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.gates import Gates

Recipe = TypeVar("Recipe", EncoderRecipe, CtrRecipe, Gates, Counting, Costs)
MARKS = {"family": EncoderRecipe, "extractor": CtrRecipe, "recall_floor": Gates, "processor": Costs}  # a key that no other kind has
KINDS = {EncoderRecipe: "an encoder", CtrRecipe: "a click model", Gates: "gates", Counting: "what counts", Costs: "costs"}
EXTENDS = "extends"
UNKNOWN = "unexpected_keyword_argument"  # pydantic's name for it
COUNTING = "counting"


def recipe(kind: type[Recipe], name: str, models: Path, *, changes: Sequence[str] = (), **override: Any) -> Recipe:
    """The recipe ``models/<name>.toml``, with what it ``extends``.

    ``override`` replaces keys, e.g. ``training={"steps": 10}`` (tables are merged); ``changes`` do so as the command line spells them, e.g.
    ``training.batch=256``. Raises :class:`SettingsError` for a recipe that is not there, of another kind, or breaks a rule.
    """
    content = _content(name, models, kind=kind)
    other = next((what for key, what in MARKS.items() if key in content and what is not kind), None)
    if other is not None and not any(MARKS.get(key) is kind for key in content):
        raise SettingsError(f"{name}.toml is a recipe for {KINDS[other]}, not for {KINDS[kind]}", action="name another one")
    content = _merged(content, override)
    for change in changes:
        content = _merged(content, _table(change))
    try:
        text = json.dumps({**content, "name": name}, default=str)
        return TypeAdapter(kind).validate_json(text, strict=True)  # from JSON, because a strict table would have to be a dataclass already
    except ValidationError as wrong:
        first = min(wrong.errors(), key=lambda error: error["type"] != UNKNOWN)  # before the key that it misspells
        where, detail = ".".join(map(str, first["loc"])) or "recipe", str(first.get("ctx", {}).get("error") or first["msg"])
        if first["type"] == UNKNOWN:
            detail = _no_key(kind, [str(part) for part in first["loc"]])
        shown = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        action = "correct the recipe" + (", or what --set changes in it" if changes else "")
        raise SettingsError(f"{name}.toml: {where}{shown}: {detail}", action=action) from wrong


def _no_key(kind: Any, place: Sequence[str]) -> str:
    """That a recipe has no key at ``place``, which key looks like it, and all that there are beside it."""
    for part in place[:-1]:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[1]  # of a table whose keys are the shop's own: values
        if get_origin(kind) is not dict:
            kind = next((inner for inner in get_args(kind) if is_dataclass(inner)), kind)  # of one that may be left out
    known = [field.name for field in fields(kind) if field.name != "name"]  # a recipe's name is its file's
    near = get_close_matches(place[-1], known, n=1)
    return f"there is no such key, so it would change nothing{f'; is {near[0]} meant?' if near else ''} (there are: {', '.join(known)})"


def caps(models: Path) -> Caps:
    """The caps of ``models/counting.toml``, by which statistics and sequences are made; the defaults where there is none."""
    return recipe(Counting, COUNTING, models).caps if (models / f"{COUNTING}.toml").is_file() else Caps()


def own_features(models: Path) -> tuple[Feature, ...]:
    """All columns of the shop's own that click recipes declare; :class:`SettingsError` if two recipes declare one differently."""
    names = sorted(path.stem for path in models.glob("*.toml"))
    declaring = [name for name in names if "features" in (content := _content(name, models)) and "extractor" in content]
    return together(recipe(CtrRecipe, name, models).own for name in declaring)


def _content(name: str, models: Path, above: tuple[str, ...] = (), kind: Any = None) -> dict[str, Any]:
    """What a recipe's file says, over what the recipe says that it extends."""
    path = models / f"{name}.toml"
    if Path(name).name != name or not path.is_file():
        known = ", ".join(p.stem for p in sorted(models.glob("*.toml")) if kind is None or _may_be(p, kind)) or "none"
        wanted = f"{above[-1]}.toml extends '{name}', but there" if above else "there"
        is_none = f"is no recipe in {models} of this name" if above else f"is no recipe '{name}' in {models}"
        raise SettingsError(f"{wanted} {is_none} (there are: {known})", action="name one of these")
    if name in above:
        raise SettingsError(f"recipes extend each other: {' → '.join((*above, name))}", action="take one `extends` out")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise SettingsError(f"{path} is not TOML ({broken})", action="mend the line it names") from broken
    extended = content.pop(EXTENDS, None)
    if extended is None:
        return content
    if not isinstance(extended, str):
        raise SettingsError(f"{path.name}: extends = {extended!r} must be the name of a recipe", action="correct the recipe")
    return _merged(_content(extended, models, (*above, name)), content)


def _may_be(path: Path, kind: Any) -> bool:
    """Whether a recipe is of that kind, as far as it can be read."""
    try:
        found = {MARKS[key] for key in _content(path.stem, path.parent) if key in MARKS}
    except SettingsError:
        return True
    return kind in found or (not found and path.stem != COUNTING)


def _merged(content: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Content with the keys of ``over`` in place of its own; tables are merged key by key."""
    both = dict(content)
    for key, value in over.items():
        below = both.get(key)
        both[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return both


def _table(change: str) -> dict[str, Any]:
    """``table.key=value`` as the tables that TOML would make of it; a value that is no TOML is a text."""
    place, equals, value = change.partition("=")
    keys = [part.strip() for part in place.split(".")]
    if not equals or not all(keys):
        raise SettingsError(f"--set {change!r} is not KEY=VALUE", action="write e.g. --set training.batch=256")
    try:
        made = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        made = value.strip()
    for key in reversed(keys):
        made = {key: made}
    return dict(made)
