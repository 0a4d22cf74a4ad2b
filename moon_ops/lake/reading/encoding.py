"""Bytes → text: compression by the file's ending, the encoding by a mark at its beginning or by what stands in it.

What is no text in its encoding becomes lone surrogates, which no good text holds: so a row with half a character can be told from the
others, and is refused alone.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.lake.reading import spelling

UTF8, WESTERN = "utf-8", "cp1252"
NAMES = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "cp1252": "Windows-1252"}
NAMES |= {f"cp125{n}": f"Windows-125{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8)}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # ending → how Arrow calls it
PACKS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}  # first bytes → the same
ENOUGH = 24  # letters beyond ASCII from which their language, and so the encoding, can be told
SAMPLE = 64 * 1024  # bytes of lines with such letters
OTHERS = {  # what charset-normalizer may find: alphabets of their own; it takes short Latin texts for anything
    *("cp1251", "cp1253", "cp1255", "cp1256", "koi8-r", "koi8-u", "iso8859-5", "iso8859-6", "iso8859-7", "iso8859-8", "tis-620", "cp874"),
    *("shift_jis", "cp932", "euc_jp", "euc_jis_2004", "shift_jis_2004", "gb2312", "gbk", "gb18030", "big5", "big5hkscs", "cp950"),
    *("euc_kr", "cp949", "johab", "hz", "iso2022_jp"),
}
BROKEN = re.compile(
    "[ÃÂâ][\x80-\xbf€‚„…‘’“”•–—™œŒžŽšŠ]|[ÃÂ](?![A-Za-z])|ð(?![a-zæáéíóúýöþ\\s])|ÿ"
)  # how UTF-8 looks when it is read as Windows-1252


def opened(path: Path) -> pa.NativeFile:
    """The file's bytes, decompressed; a cut file is an OSError when its end is reached."""
    return pa.input_stream(str(path), compression=packed(path))


def packed(path: Path) -> str | None:
    """How the file is compressed, by its first bytes, whatever its ending says; by its ending if they are no letters either."""
    with path.open("rb") as file:
        head = file.read(10)
    found = next((how for mark, how in PACKS.items() if head.startswith(mark)), None)
    return found if found or head.isascii() else PACKED.get(path.suffix.lower())


def recognise(path: Path) -> str:
    """The encoding that the first bytes show: by a mark, by the zeros that UTF-16 puts between Latin letters, else UTF-8."""
    with opened(path) as stream:
        head = stream.read(4096)
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    half = len(head) // 2
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if half and head[offset::2].count(0) > 0.3 * half > 3 * head[1 - offset :: 2].count(0):
            return name
    return UTF8


def known(name: str) -> str:
    """Python's name of an encoding; :class:`InputError` for one that nobody knows."""
    try:
        return codecs.lookup(name).name
    except LookupError as unknown:
        raise InputError(f"encoding = {name!r} is unknown", action="write utf-8, utf-16 or windows-1252, for example") from unknown


def text(path: Path, encoding: str) -> TextIO:
    """The file's text, line ends as they are; what is no text in the encoding becomes lone surrogates."""
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(io.BufferedReader(_Raw(opened(path)), 2**18), encoding, errors, newline="")


class _Raw(io.RawIOBase):
    """An Arrow stream as Python's own text reader wants it."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self.stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self.stream.close()
        super().close()


def ended(path: Path) -> bool:
    """Whether the file's last line has an end, or closes a quote: if not, what stands in it may be cut."""
    last = b""
    with opened(path) as stream:
        if not packed(path):
            stream.seek(max(stream.size() - 4, 0))
        while chunk := stream.read(2**20):
            last = (last + chunk)[-4:]
    return last.replace(b"\0", b"").endswith((b"\n", b"\r", b'"', b"'"))


def whole(value: str) -> bool:
    """Whether a text has no half characters."""
    return value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)


def guess(path: Path) -> str:
    """The encoding of a file that is no clean UTF-8: UTF-8 with broken rows, or another.

    A file with letters that are UTF-8 is UTF-8. Else Windows code pages are compared by the lines that are spelled as a language of theirs
    is (:mod:`~moon_ops.lake.reading.spelling`), Windows-1252 first. Where none fits, charset-normalizer is asked, if letters are enough.
    """
    strange, good = _strange(path)
    if good or not strange:
        return UTF8
    sample = b"\n".join(strange)
    shown = sample.decode(WESTERN, "replace")
    if (found := spelling.code_page(strange)) and not (found == WESTERN and BROKEN.search(shown)):
        return found
    likely = _most_likely(sample) if sum(byte > 127 for byte in sample) >= ENOUGH else None
    return likely if likely in OTHERS else UTF8


def _strange(path: Path) -> tuple[list[bytes], int]:
    """Lines that are no UTF-8, at most :data:`SAMPLE` bytes of them, and how many lines have letters that are."""
    strange: list[bytes] = []
    good = size = 0
    for line in _lines(path):
        if line.isascii():
            continue
        try:
            line.decode()
            good += 1
        except UnicodeDecodeError:
            if size < SAMPLE:
                strange.append(line)
                size += len(line)
    return strange, good


def _lines(path: Path) -> Iterator[bytes]:
    with opened(path) as stream:
        rest = b""
        while chunk := stream.read(2**20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        yield rest


def _most_likely(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return None if best is None else codecs.lookup(best.encoding).name
