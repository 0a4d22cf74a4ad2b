"""Pictures from outside: decoded once, within limits, and turned into the pixels that an encoder reads.

A picture is untrusted: it may be truncated, a decompression bomb, or not a picture at all. Formats are opened by their first bytes, so
that none of Pillow's rarer decoders is ever reached by a file that a seller uploaded. Ingest, training, evaluation and the service all
decode here: the same bytes are the same pixels everywhere, and :mod:`moon_ops.inputs.golden_pictures` tells when they no longer are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import struct
import threading
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from moon_ops.errors import InputError
from moon_ops.inputs.colours import eight_bits, on_white, with_alpha

OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
FORMATS = (*OPENERS, "HEIC")  # HEIC comes with the extra `heic`
MEDIA = {kind: f"image/{kind.lower()}" for kind in FORMATS}
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"heim": "HEIC", b"heis": "HEIC"}
MAX_BYTES = 40 * 2**20  # of a file: photographs of 200 megapixels have about 30 MiB
FULL = 40_000_000  # pixels that are decoded as they are, to 160 MB; a larger picture is reduced to at most these
MAX_PIXELS = 80_000_000  # of a file that has to be decoded as a whole first, to 320 MB; phones make 64 million
MAX_STREAMED = 220_000_000  # of a JPEG that is reduced row by row while it is decoded; phones make 200 million
SHOWN = 2048  # pixels of the longer side of a picture that is made for browsers
PIXELS = 2  # the rules by which bytes become pixels here: a training that began under others begins anew
LARGE = threading.Lock()  # one large picture at a time: the memory of several would add up
TURNS = {  # EXIF orientation → what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture that has been decoded and found good; ``image_id`` is the sha256 of ``content``, width and height are the file's own."""

    image_id: str
    content: bytes
    format: str
    width: int
    height: int
    phash: str  # 64-bit perceptual hash, 16 hex digits


def image_id(content: bytes) -> str:
    """The name of a picture: the sha256 of its bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def kind_of(content: bytes) -> str:
    """One of ``FORMATS`` by the first bytes; empty for anything else."""
    for kind, signs in (("JPEG", (b"\xff\xd8\xff",)), ("PNG", (b"\x89PNG\r\n\x1a\n",)), ("GIF", (b"GIF87a", b"GIF89a"))):
        if content.startswith(signs):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":  # a box with the main brand and those that it is compatible with, of four bytes each
        length = min(int.from_bytes(content[:4], "big"), 256)
        brands = [content[8:12], *(content[at : at + 4] for at in range(16, length, 4))]
        return next((BRANDS[brand] for brand in brands if brand in BRANDS), "")
    return ""


def decode(content: bytes, *, source: str = "picture") -> Image.Image:
    """The first frame as an RGB picture: upright, in sRGB, on white, reduced to at most ``FULL`` pixels if it has more.

    Raises :class:`InputError`, which names ``source`` and the reason, for anything doubtful.
    """
    return _read(content, source)[0]


def inspect(content: bytes, *, source: str = "picture") -> Picture:
    """Decode the picture once and describe it for the ``images`` table."""
    picture, (width, height) = _read(content, source)
    return Picture(image_id(content), content, kind_of(content), width, height, str(imagehash.phash(picture)))


def _read(content: bytes, source: str) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, and the upright size of its file."""
    if len(content) > MAX_BYTES:
        raise _refused(source, f"{len(content):,} bytes is more than {MAX_BYTES:,}", "bring a smaller file")
    kind = kind_of(content)
    if not kind:
        raise _refused(source, "it is not a JPEG, PNG, WebP, GIF, AVIF or HEIC picture", "convert it to one of these")
    try:
        with _opened(content, kind) as opened:
            width, height = opened.size
            streamed = kind == "JPEG" and _streams(content)
            most = MAX_STREAMED if streamed else MAX_PIXELS
            if width * height > most:
                raise _refused(source, f"{width}x{height} is more than {most:,} pixels", "scale it down")
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
            with LARGE if width * height > FULL else contextlib.nullcontext():
                shown = on_white(_reduced(opened, streamed or kind == "JPEG"))
            turn = TURNS.get(orientation)  # ImageOps would write the EXIF anew, and fail if it is damaged
            size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
            return shown if turn is None else shown.transpose(turn), size
    except InputError:
        raise
    except ModuleNotFoundError as missing:
        action = 'install it (pip install "moon_ops[heic]"), or convert the picture to JPEG'
        raise _refused(source, f"it is a {kind} picture, which {missing.name} decodes, and that is not installed", action) from missing
    except BROKEN as broken:
        raise _refused(source, f"it cannot be decoded ({broken})", "bring the file again") from broken


BROKEN: tuple[type[Exception], ...]  # what Pillow raises for files that are none; an assertion for a palette that is not there
BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, AssertionError, struct.error)
BROKEN += (Image.DecompressionBombError,)


def _opened(content: bytes, kind: str) -> ImageFile.ImageFile:
    """The file with its header read; nothing is registered with Pillow, and its own bound on pixels is replaced by ours."""
    if kind in OPENERS:
        return OPENERS[kind](io.BytesIO(content))
    from pillow_heif import HeifImageFile

    return HeifImageFile(io.BytesIO(content))


def _streams(content: bytes) -> bool:
    """Whether a JPEG's decoder needs a few rows at a time only: one scan with all components. Otherwise it keeps the whole picture."""
    at, sequential, components = 2, False, 0
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a byte that fills up
            at += 1
            continue
        if marker == 0xDA:
            return sequential and content[at + 4 : at + 5] == bytes([components])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sequential, components = marker in (0xC0, 0xC1), content[at + 9] if at + 9 < len(content) else 0
        at += 2 + length
    return False


def _reduced(opened: ImageFile.ImageFile, jpeg: bool) -> Image.Image:
    """The picture, of at most ``FULL`` pixels: a JPEG is decoded at a half, a quarter or an eighth, others are averaged after it."""
    count = opened.width * opened.height
    if count <= FULL:
        return opened
    if jpeg:
        scale = next((s for s in (2, 4) if count <= FULL * s * s), 8)
        opened.draft(None, (opened.width // scale, opened.height // scale))
        return opened
    picture = with_alpha(eight_bits(opened))
    if picture.mode in ("1", "P"):
        picture = picture.convert("RGB")
    return picture.reduce(math.ceil(math.sqrt(count / FULL)))


def for_browsers(content: bytes) -> tuple[str, bytes]:
    """The media type and the bytes to show: a picture of the lake as it is, but HEIC, which browsers do not show, as a JPEG."""
    kind = kind_of(content)
    if kind != "HEIC":
        return MEDIA.get(kind, "application/octet-stream"), content
    shown = decode(content)
    shown.thumbnail((SHOWN, SHOWN))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=90)
    return MEDIA["JPEG"], file.getvalue()


def pixels(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """The whole picture as uint8 [3, size, size], scaled to a square without cropping, bilinear.

    These are the pixels that transformers' SmolVLM processor makes for ``do_image_splitting=False``; rescaling and
    normalisation happen inside the exported graph.
    """
    small = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small, np.uint8).transpose(2, 0, 1))


def _refused(source: str, why: str, action: str) -> InputError:
    return InputError(f"{source}: {why}; the picture was not read", action=action)


def golden_pixels(size: int) -> str:
    """The sha256 of the pixels made of a fixed, drawn picture: another value means that resizing has changed under us."""
    y, x = np.mgrid[0:150, 0:113]
    drawn = np.stack([(x * 7 + y) % 256, (y * 5) % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    return hashlib.sha256(pixels(Image.fromarray(drawn), size).tobytes()).hexdigest()
