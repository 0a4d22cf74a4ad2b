"""What changes for users, in pictures: a release's answers above those of the next, neighbours likewise, and the parts that lose."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from moon_ops.errors import InputError
from moon_ops.inputs.images import decode
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes
from moon_ops.metric_names import ANSWERS, NEIGHBOURS, overlap
from moon_ops.release import pictures
from moon_ops.release.changes import LEAST, SHOWN, Answer, Changes, Group, Moved
from moon_ops.release.page import number, table, text, tile

log = logging.getLogger(__name__)

Looks = Mapping[str, Image.Image]  # pictures by id


def section(changed: Changes, names: tuple[str, str], looks: Looks, files: dict[str, bytes]) -> str:
    """HTML of the queries, items and parts of the catalogue that changed most; PNG files of the same are added to ``files``."""
    small = {i: pictures.thumbnail(look) for i, look in looks.items()}
    out = [f"<p class='note'>{text(note)}</p>" for note in changed.notes]
    figures = changed.figures
    if changed.answers:
        lost, won = (figures.get(f"{ANSWERS}/{what}", 0.0) for what in ("lost", "won"))
        asked, same = figures[f"{ANSWERS}/compared"], 100 * figures[overlap(ANSWERS)]
        out += [
            "<h3>Searches whose first answers changed most</h3>"
            f"<p>Of the first 10 answers to {asked:,.0f} queries {same:.0f} % are the same. The product bought came among the first 10 in "
            f"{won:,.0f} searches where it was not, and left them in {lost:,.0f}. Green: the product that was bought.</p>"
        ]
        out += [_answer(a, changed, names, small) for a in changed.answers]
        _sheet([(a.query.image_ids, a.before, a.after, a.bought) for a in changed.answers], changed, looks, files, "searches_changed.png")
    if changed.moved:
        out.append(
            "<h3>Items whose neighbours moved most</h3><p>Of the 10 nearest items "
            f"{100 * figures[overlap(NEIGHBOURS)]:.0f} % are the same, over all items looked at.</p>"
        )
        out += [_moved(m, changed, names, small) for m in changed.moved]
        rows = [(tuple(filter(None, [_image(changed, m.item_id)])), m.before, m.after, frozenset[int]()) for m in changed.moved]
        _sheet(rows, changed, looks, files, "neighbours_moved.png")
    if changed.judged:
        out.append(_groups(changed, names, small))
    elif changed.answers:
        out.append(
            f"<p class='note'>By part of the catalogue: no part was bought from by {LEAST} queries or more, or it cannot be told.</p>"
        )
    return "".join(out)


def _answer(answer: Answer, changed: Changes, names: tuple[str, str], small: Mapping[str, bytes]) -> str:
    shown = answer.query.text or "photograph"
    asked = tile(next((small[i] for i in answer.query.image_ids if i in small), None), shown)
    places = f"product bought: place {answer.ranks[0]:,} → {answer.ranks[1]:,}<br>{answer.common} of 10 answers in common"
    lines = [(name, side, answer.bought) for name, side in zip(names, (answer.before, answer.after), strict=True)]
    return _row(asked, places, lines, changed, small)


def _moved(moved: Moved, changed: Changes, names: tuple[str, str], small: Mapping[str, bytes]) -> str:
    asked = _item(moved.item_id, changed, small)
    lines = [(name, side, frozenset[int]()) for name, side in zip(names, (moved.before, moved.after), strict=True)]
    return _row(asked, f"item {text(_called(moved.item_id, changed))}<br>{moved.common} of 10 neighbours in common", lines, changed, small)


def _row(
    asked: str, said: str, lines: Sequence[tuple[str, Sequence[int], frozenset[int]]], changed: Changes, small: Mapping[str, bytes]
) -> str:
    body = ""
    for name, side, bought in lines:
        body += f'<div class="line"><b>{text(name)}</b>' + "".join(_item(i, changed, small, hit=i in bought) for i in side) + "</div>"
    return f'<div class="row"><div class="asked">{asked}<span class="note">{said}</span></div><div>{body}</div></div>'


def _item(item: int, changed: Changes, small: Mapping[str, bytes], *, hit: bool = False, kind: str = "") -> str:
    title = changed.items[item].title if item in changed.items else f"item {item}"
    return tile(small.get(_image(changed, item) or ""), title, hit=hit, kind=kind)


def _called(item: int, changed: Changes) -> str:
    """The shop's id of an item."""
    return (changed.items[item].source_id if item in changed.items else "") or str(item)


def _image(changed: Changes, item: int) -> str | None:
    return changed.items[item].image_id if item in changed.items else None


def _groups(changed: Changes, names: tuple[str, str], small: Mapping[str, bytes]) -> str:
    def row(group: Group) -> list[str]:
        gap = f"{number(group.after - group.before, sign=True)} [{number(group.low, sign=True)}, {number(group.high, sign=True)}]"
        seen = '<div class="line">' + "".join(_item(i, changed, small, kind="small") for i in group.examples) + "</div>"
        return [text(group.name), seen, f"{group.items:,}", f"{group.queries:,}", number(group.before), number(group.after), gap]

    told = f"Recall@10 fell in {changed.worse} of {changed.judged} parts of the catalogue that had {LEAST} queries or more."
    if changed.fell:
        told += " Some fall by chance alone: look for an interval below zero."
    head = ["part", "typical items", "items", "queries", *names, "difference, 95 % interval"]
    return f"<h3>Parts of the catalogue where recall fell</h3><p>{told}</p>" + table(head, map(row, changed.fell), numbers=(2, 3, 4, 5, 6))


def looks_of(lake: Lake, changed: Changes) -> Looks:
    """The pictures that are shown, small, by id; one that cannot be read is shown by its title."""
    wanted = {i for a in changed.answers for i in a.query.image_ids} | {i.image_id for i in changed.items.values() if i.image_id}
    found = {}
    for name, content in image_bytes(lake, sorted(wanted)):
        try:
            look = decode(content)
            look.thumbnail((2 * pictures.THUMB, 2 * pictures.THUMB))
            found[name] = look
        except InputError as fault:
            log.warning("picture %s is not shown (%s)", name, fault.problem)
    return found


def _sheet(rows: Sequence[tuple[Any, ...]], changed: Changes, looks: Looks, files: dict[str, bytes], name: str) -> None:
    """The same rows as a PNG of their own, where there are pictures."""
    blank = Image.new("RGB", (pictures.CELL, pictures.CELL), "#eeeeee")

    def side(items: Sequence[int], bought: frozenset[int]) -> list[tuple[Image.Image, bool]]:
        return [(looks.get(_image(changed, i) or "", blank), i in bought) for i in items[:SHOWN]]

    if not looks:
        return
    found = [pictures.Pair(looks.get(next(iter(q), ""), blank), side(old, hits), side(new, hits)) for q, old, new, hits in rows]
    with tempfile.TemporaryDirectory() as scratch:
        pictures.pairs(found, Path(scratch) / "p.png")
        files[name] = (Path(scratch) / "p.png").read_bytes()
