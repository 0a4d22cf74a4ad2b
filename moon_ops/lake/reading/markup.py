"""HTML → the text that people see: tags go, entities become their signs, scripts and styles are no text.

A text is HTML where it shows it: by an end tag, a comment, a tag that stands alone (``<br>``), a tag with attributes, or a paragraph with
which it begins. So ``size <3 kg``, ``a < b`` and ``the <b> tag`` stay as they are. An entity that is written in full (``&amp;``,
``&#39;``) becomes its sign in any text, because people do not write one; ``AT&T`` and ``a&copy=2`` are none.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

ALONE = "br|hr|img|wbr|input|link|meta|source|embed|col"
BLOCK = "p|div|ul|ol|li|dl|dt|dd|table|thead|tbody|tfoot|tr|td|th|caption|h[1-6]|section|article|header|footer|main|aside|nav|figure"
BLOCK += "|figcaption|blockquote|pre|center|form|fieldset|legend|details|summary|address|html|head|body|title|option|br|hr"
INLINE = "a|b|i|u|s|q|em|strong|span|font|small|big|sub|sup|mark|code|kbd|samp|var|tt|strike|del|ins|abbr|acronym|cite|dfn|time|label"
INLINE += "|button|select|textarea|bdi|bdo|ruby|rt|rp|nobr|data|meter|progress|picture|video|audio|iframe|object|param|map|area|colgroup"
INLINE += r"|canvas|noscript|svg|path|g|script|style|template|[a-z]+:[a-z]+"
SILENT = ("script", "style", "template", "svg", "head")
NAMES = f"(?:{BLOCK}|{ALONE}|{INLINE})"
VALUE = r"""\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>]++)"""
SWITCH = "allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|itemscope|loop|muted|nowrap|open|playsinline|selected"
ATTRIBUTES = rf"(?:\s++(?:[^\s\"'<>/=]++{VALUE}|(?:{SWITCH})\b))"
TAG = rf"(?:/{NAMES}\s*+|{NAMES}{ATTRIBUTES}*+\s*+/?)>"
SHOWS = re.compile(rf"(?i)</{NAMES}\s*+>|<!--|<(?:{ALONE})\s*+/?>|<{NAMES}{ATTRIBUTES}++\s*+/?>|^\s*+<(?:{BLOCK})>")
NO_TAG = re.compile(rf"(?i)<(?!{TAG}|!--)")
CUT = re.compile(rf"(?i)<{NAMES}\s[^<>]*$")  # a tag that a limit of characters has cut
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
NO_ENTITY = re.compile(r"&(?!#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[a-zA-Z][a-zA-Z0-9]{1,31};)")
PASSES = 3  # some programs escape what is escaped already
BREAKS = re.compile(f"(?:{BLOCK})")


class _Reader(HTMLParser):
    """Collects what is seen."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[str] = []
        self.silent: list[str] = []  # elements around us that show nothing

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - as the library calls it
        if tag in SILENT:
            self.silent.append(tag)
        elif BREAKS.fullmatch(tag):
            self.seen.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - as the library calls it
        if BREAKS.fullmatch(tag):
            self.seen.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[self.silent.index(tag) :]
        elif BREAKS.fullmatch(tag):
            self.seen.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.seen.append(data)


def is_html(text: str) -> bool:
    """Whether a text shows that it is HTML."""
    return "<" in text and SHOWS.search(text) is not None


def text(cell: str) -> str:
    """What a reader of the page sees of a cell, on one line; a cell that is no HTML stays as it is, but for its entities."""
    for _ in range(PASSES):
        seen = _stripped(cell) if is_html(cell) else _decoded(cell)
        if seen == cell:
            break
        cell = seen
    return cell


def plain(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any] | pa.Array[Any]:
    """The column of texts with :func:`text` in each cell; one that shows nothing is null."""
    may = pc.fill_null(pc.match_substring_regex(column, "[<&]"), False)
    if not pc.any(may).as_py():
        return column
    found = [(cell and text(cell)) or None for cell in column.filter(may).to_pylist()]
    return pc.replace_with_mask(column.combine_chunks(), may.combine_chunks(), pa.array(found, pa.string()))


def _stripped(cell: str) -> str:
    reader = _Reader()
    whole = CUT.sub("", cell) if cell.rfind("<") > cell.rfind(">") else cell
    reader.feed(NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", ENTITY.sub(_known, whole))))
    reader.close()
    return " ".join("".join(reader.seen).split())


def _decoded(cell: str) -> str:
    return ENTITY.sub(lambda entity: html.unescape(entity[0]).replace("\u00a0", " ") if _is_known(entity[0]) else entity[0], cell)


def _known(entity: re.Match[str]) -> str:
    return entity[0] if _is_known(entity[0]) else f"&amp;{entity[0][1:]}"


def _is_known(entity: str) -> bool:
    return entity[1] == "#" or entity[1:] in html5
