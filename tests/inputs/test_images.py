"""Pictures from outside: what is refused and why, and the exact pixels of what is not."""

from __future__ import annotations

import hashlib
import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from moon_ops.errors import InputError
from moon_ops.inputs import images

CORNERS = np.array(  # 2 x 3 pixels: every turn and flip of them is different
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]], np.uint8
)


def drawn(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x * 7 + y) % 256, (y * 5) % 256, (x * y) % 256], axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_orientation(picture: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.ImageDescription] = "a photograph"
    return encoded(picture, kind, exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces its size and has no pixels: all that a decompression bomb needs to show."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def test_inspect_describes_the_picture() -> None:
    content = encoded(drawn(40, 30))
    found = images.inspect(content, source="a.png")
    assert found.image_id == hashlib.sha256(content).hexdigest()
    assert found.content == content
    assert (found.format, found.width, found.height) == ("PNG", 40, 30)
    assert len(found.phash) == 16
    assert int(found.phash, 16) >= 0


WRITTEN = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")  # by Pillow itself


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_formats_are_read(kind: str) -> None:
    assert images.inspect(encoded(drawn(40, 30), kind)).format == kind
    assert images.decode(encoded(drawn(40, 30), kind)).size == (40, 30)


def test_similar_pictures_have_similar_hashes_and_others_do_not() -> None:
    picture = drawn(120, 90)
    ours, again, other = (int(images.inspect(encoded(p)).phash, 16) for p in (picture, picture.resize((100, 75)), picture.rotate(90)))
    assert (ours ^ again).bit_count() <= 6
    assert (ours ^ other).bit_count() >= 16


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.transpose(1, 0, 2)),
        (6, np.rot90(CORNERS, -1)),
        (7, CORNERS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(CORNERS, 1)),
        (99, CORNERS),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: np.ndarray) -> None:
    content = with_orientation(Image.fromarray(CORNERS), orientation)
    np.testing.assert_array_equal(np.asarray(images.decode(content)), upright)


def test_inspect_measures_the_upright_picture() -> None:
    found = images.inspect(with_orientation(drawn(40, 30), 6, "JPEG"))
    assert (found.width, found.height) == (30, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_damaged_file_is_refused_or_read_and_never_anything_else(kind: str) -> None:
    """Random damage, with every second one in the EXIF block: an exception of another kind would end a whole ingest."""
    rng = random.Random(0)
    good = with_orientation(drawn(31, 24), 6, kind)
    exif = max(good.find(b"MM\0*"), good.find(b"II*\0"))
    assert exif > 0
    refused = []
    for attempt in range(1000):
        bad = bytearray(good)
        span = (exif, min(exif + 60, len(good))) if attempt % 2 else (0, len(good))
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(*span)] = rng.randrange(256)
        try:
            images.inspect(bytes(bad[: rng.randrange(len(bad))] if attempt % 7 == 0 else bad))
        except InputError as fault:
            refused.append(fault.problem)
    assert 100 < len(refused) < 1000  # and the others were read
    assert all(re.fullmatch(r"picture: .*; the picture was not read", problem, re.DOTALL) for problem in refused)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_costs_no_picture(kind: str) -> None:
    """One byte turns the description into a width that is a text: it could not be written back, and an upright picture needs no writing."""
    good = with_orientation(drawn(40, 30), 6, kind)
    assert good.count(b"\x01\x0e\x00\x02") == 1
    assert images.decode(good.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")).size == (30, 40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JPEG, PNG, WebP, GIF, AVIF or HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG, WebP, GIF, AVIF or HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not a JPEG, PNG, WebP, GIF, AVIF or HEIC"),
        (encoded(drawn(40, 30), "TIFF"), "not a JPEG, PNG, WebP, GIF, AVIF or HEIC"),
        (encoded(drawn(400, 300))[:3000], "cannot be decoded"),
        (encoded(drawn(400, 300), "JPEG")[:3000], "cannot be decoded"),
    ],
    ids=["nothing", "svg", "film", "tiff", "half a png", "half a jpeg"],
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        images.decode(content, source="pictures/7.png")
    assert refused.value.problem.startswith("pictures/7.png: ")
    assert refused.value.problem.endswith("the picture was not read")
    assert refused.value.action


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    with pytest.raises(InputError, match=r"40x30 is more than 1,199 pixels"):
        images.decode(encoded(drawn(40, 30)))
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert images.decode(encoded(drawn(40, 30))).size == (40, 30)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [(10_000, 8_001, "10000x8001 is more than 80,000,000 pixels"), (65_000, 65_000, "65000x65000 is more than 80,000,000 pixels")],
)
def test_a_decompression_bomb_is_refused_from_its_header(width: int, height: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        images.decode(png_header(width, height))


def test_a_file_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(drawn(40, 30))
    monkeypatch.setattr(images, "MAX_BYTES", len(content) - 1)
    with pytest.raises(InputError, match=f"{len(content):,} bytes is more than {len(content) - 1:,}"):
        images.decode(content)
    monkeypatch.setattr(images, "MAX_BYTES", len(content))
    assert images.decode(content).size == (40, 30)


def test_pixels_show_the_whole_picture() -> None:
    left_red = Image.new("RGB", (60, 20), (0, 0, 255))
    left_red.paste((255, 0, 0), (0, 0, 30, 20))
    made = images.pixels(left_red, 16)
    assert made.shape == (3, 16, 16)
    assert made.dtype == np.uint8
    assert made.flags["C_CONTIGUOUS"]
    assert made[:, 8, 0].tolist() == [255, 0, 0]
    assert made[:, 8, 15].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(images.pixels(Image.fromarray(CORNERS[:, :2]), 2), CORNERS[:, :2].transpose(2, 0, 1))


def test_golden_pixels_are_the_ones_of_every_release() -> None:
    """Another value means other vectors from the same weights: a new contract, not a new number here."""
    assert images.golden_pixels(32) == "478ea5c815141829cdf313737da0b14ca7a52ca2e5d6782e39e1455ebc570ca8"
    assert images.golden_pixels(64) == "92457f5b634e064b6577ff8bc1fee7c5dee0a24892e5e0a9b75e7591242d75bf"


@pytest.mark.parametrize(("width", "height"), [(113, 150), (150, 113), (64, 64), (20, 300)])
@pytest.mark.parametrize("size", [32, 64])
def test_pixels_equal_those_of_the_transformers_processor(width: int, height: int, size: int) -> None:
    from moon_ops.encoder.smolvlm import picture_processor

    picture = drawn(width, height)
    theirs = picture_processor(size)(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(images.pixels(picture, size), np.asarray(theirs).reshape(3, size, size))
