"""Pictures from outside: decoded once, within limits, and turned into the pixels that an encoder reads.

A picture is untrusted: it may be truncated, a decompression bomb, or not a picture at all. Formats are opened by name, so that
none of Pillow's rarer decoders is ever reached by a file that a seller uploaded.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from moon_ops.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000  # a 40-megapixel photograph decodes to 120 MB; Pillow itself only warns at 89 million
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
    """A picture that has been decoded and found good; ``image_id`` is the sha256 of ``content``."""

    image_id: str
    content: bytes
    format: str
    width: int
    height: int
    phash: str  # 64-bit perceptual hash, 16 hex digits


def image_id(content: bytes) -> str:
    """The name of a picture: the sha256 of its bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes, *, source: str = "picture") -> Image.Image:
    """The RGB picture, turned upright by its EXIF orientation; :class:`InputError` naming ``source`` for anything doubtful."""
    if len(content) > MAX_BYTES:
        raise _refused(source, f"{len(content):,} bytes is more than {MAX_BYTES:,}", "bring a smaller file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise _refused(source, f"{opened.width}x{opened.height} is more than {MAX_PIXELS:,} pixels", "scale it down")
            turn = TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))  # ImageOps would write the EXIF anew, and fail if damaged
            return (opened if turn is None else opened.transpose(turn)).convert("RGB")
    except InputError:
        raise
    except UnidentifiedImageError as unknown:
        raise _refused(source, "it is not a JPEG, PNG or WebP picture", "convert it to one of these") from unknown
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as broken:
        raise _refused(source, f"it cannot be decoded ({broken})", "bring the file again") from broken


def inspect(content: bytes, *, source: str = "picture") -> Picture:
    """Decode the picture once and describe it for the ``images`` table."""
    picture = decode(content, source=source)
    with Image.open(io.BytesIO(content), formats=FORMATS) as header:
        kind = str(header.format)
    return Picture(image_id(content), content, kind, picture.width, picture.height, str(imagehash.phash(picture)))


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
