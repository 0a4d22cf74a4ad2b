"""A Google Merchant feed as XML, RSS 2.0 or Atom, read piece by piece: its tree is never whole in memory.

Read by the standard library's expat. A feed needs no document type, so the first ``<!DOCTYPE`` ends the reading before anything of it is
looked at: without one there are no entities but XML's own five, and so neither bombs nor files or addresses of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import ParseError, XMLParser

from moon_ops.errors import InputError
from moon_ops.lake.reading import encoding
from moon_ops.shops.exports.sheets import Line, Sheet, called

ROWS = ("item", "entry")  # of RSS, of Atom
PIECE = 2**18  # bytes that are read at a time
LONGEST = 2**22  # characters of one product
SEVERAL = "\n"  # between the values of an element that is there more than once
FEEDS = ("title", "description", "link", "id")  # elements of RSS and Atom, too: Google's own of that name counts
GOOGLE = "{http://base.google.com/ns/1.0}"


class _Products:
    """What the parser calls: gathers one product after the other."""

    def __init__(self) -> None:
        self.made: list[dict[str, str]] = []
        self.cells: dict[str, str] | None = None  # of the product that we are in
        self.path: list[str] = []  # elements of it around us
        self.text: list[str] = []
        self.long = 0
        self.root = ""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002 - as the parser calls it
        """A document type could declare entities that grow without bound, or that read other files."""
        raise ValueError("it declares a document type, which a feed does not need")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        self.root = self.root or tag
        if self.cells is None:
            if _local(tag) in ROWS:
                self.cells, self.path, self.long = {}, [], 0
            return
        self.path.append(tag)
        if len(self.path) == 1:
            self.text = [attributes["href"]] if _local(tag) == "link" and "href" in attributes else []  # Atom's

    def data(self, text: str) -> None:
        """Text, of which there may be several pieces."""
        if self.cells is not None and self.path:
            self.text.append(text)
            self.long += len(text)
            if self.long > LONGEST:
                raise ValueError(f"product {len(self.made) + 1} of a piece has more than {LONGEST:,} characters")

    def end(self, tag: str) -> None:
        """An element ends."""
        if self.cells is None:
            return
        if not self.path:
            self.made.append(self.cells)
            self.cells = None
            return
        self.path.pop()
        if self.path:
            self.text.append(" ")  # between the parts of e.g. <g:shipping>
            return
        name, said = called(_local(tag)), "".join(self.text).strip()
        before = self.cells.get(name)
        if said and (before is None or (name in FEEDS and tag.startswith(GOOGLE))):
            self.cells[name] = said
        elif said and name not in FEEDS:
            self.cells[name] = f"{before}{SEVERAL}{said}"

    def close(self) -> None:
        """The document ends."""


def _local(tag: str) -> str:
    return tag.rpartition("}")[2].lower()


def read(path: Path, root: Path) -> Sheet:
    """The feed's products as rows, numbered from 1.

    Raises :class:`InputError` for a file that is no XML to its end, that declares a document type, or that has no products.
    """
    label = path.relative_to(root).as_posix()
    lines, columns = list[Line](), dict[str, str]()
    for number, cells in enumerate(_products(path), 1):
        lines.append(Line(f"{label}:{number}", cells))
        columns.update({name: name for name in cells})
    if not lines:
        raise InputError(f"{path} holds no <item> and no <entry>; nothing was imported", action="bring a feed of products")
    return Sheet(label, columns, lines, how="XML")


def _products(path: Path) -> Iterator[dict[str, str]]:
    found = _Products()
    parser = XMLParser(target=found)
    try:
        with encoding.opened(path) as stream:
            while piece := stream.read(PIECE):
                parser.feed(piece)
                yield from found.made
                found.made = []
        parser.close()
    except (ParseError, ValueError, OSError) as broken:
        raise InputError(f"{path} cannot be read ({broken}); nothing was imported", action="write the file again") from broken
    yield from found.made
