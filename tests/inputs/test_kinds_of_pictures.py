"""Pictures of every kind that shops have: transparent, deep, wide in gamut, in inks, animated, from phones, and very large."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from moon_ops.errors import InputError
from moon_ops.inputs import golden_pictures, images
from moon_ops.inputs.golden_pictures import COLOURS, changed_kinds, golden_kinds, matrix_profile

QUARTERS = np.array([[[200, 40, 40, 255], [0, 0, 0, 0]], [[0, 0, 0, 128], [10, 20, 30, 255]]], np.uint8)
CLEAR = Image.fromarray(QUARTERS.repeat(8, 0).repeat(8, 1))
ON_WHITE = [(200, 40, 40), (255, 255, 255), (127, 127, 127), (10, 20, 30)]
P3 = golden_pictures.display_p3()
ADOBE = matrix_profile(((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 563 / 256)
SRGB = matrix_profile(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)), 2.2)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def corners(picture: Image.Image) -> list[Any]:
    """The middles of the four quarters."""
    width, height = picture.size
    return [picture.getpixel((x * width // 4, y * height // 4)) for y in (1, 3) for x in (1, 3)]


def as_before(content: bytes) -> NDArray[np.uint8]:
    """How pictures were decoded before: what an opaque one must still become, bit by bit."""
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})])
def test_what_is_transparent_is_white(kind: str, options: dict[str, Any]) -> None:
    for found, wanted in zip(corners(images.decode(encoded(CLEAR, kind, **options))), ON_WHITE, strict=True):
        assert found == pytest.approx(wanted, abs=3 if kind == "AVIF" else 1)


def test_a_product_cut_out_is_the_product_on_white() -> None:
    studio = Image.new("RGB", CLEAR.size, "white")
    studio.paste(CLEAR, mask=CLEAR.getchannel("A"))
    for size in (2, 16):
        np.testing.assert_array_equal(*(images.pixels(images.decode(encoded(p)), size) for p in (CLEAR, studio)))


def test_transparency_of_palettes_and_single_colours_is_white() -> None:
    palette = CLEAR.convert("RGB").quantize(4)
    wanted = [(200, 40, 40), (255, 255, 255), (255, 255, 255), (10, 20, 30)]
    black = palette.getpixel((12, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert corners(images.decode(encoded(palette, transparency=black))) == wanted
        assert corners(images.decode(encoded(palette, "GIF", transparency=black))) == wanted
        assert corners(images.decode(encoded(CLEAR.convert("RGB"), transparency=(0, 0, 0)))) == wanted
        assert corners(images.decode(encoded(CLEAR.convert("RGB").convert("L"), transparency=0)))[1] == (255, 255, 255)
        alphas = bytes([255] * black + [64] + [255] * (255 - black))
        assert corners(images.decode(encoded(palette, transparency=alphas)))[1] == (191, 191, 191)


def test_grey_with_alpha_is_on_white() -> None:
    grey = Image.merge("LA", (CLEAR.getchannel("R"), CLEAR.getchannel("A")))
    assert corners(images.decode(encoded(grey))) == [(200,) * 3, (255,) * 3, (127,) * 3, (10,) * 3]


def png16(values: NDArray[np.uint16], more: bytes = b"") -> bytes:
    return golden_pictures._png(values.astype(">u2"), 0 if values.shape[-1] == 1 else 2, more)


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    shown = np.asarray(images.decode(png16(grey)))
    np.testing.assert_array_equal(shown, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1))
    np.testing.assert_array_equal(np.asarray(images.decode(png16(grey.repeat(3, -1)))), shown)


def test_a_transparent_level_of_sixteen_bits_is_white() -> None:
    values = np.array([[300, 40_000]], np.uint16)[..., None].repeat(4, 0)
    clear = golden_pictures._chunk(b"tRNS", struct.pack(">H", 300))
    assert np.asarray(images.decode(png16(values, clear)))[0, :, 0].tolist() == [255, 40_000 >> 8]
    clear = golden_pictures._chunk(b"tRNS", struct.pack(">HHH", 300, 300, 300))
    assert np.asarray(images.decode(png16(values.repeat(3, -1), clear)))[0, :, 0].tolist() == [255, 40_000 >> 8]


@pytest.mark.parametrize("profile", [P3, ADOBE], ids=["display p3", "adobe rgb"])
def test_a_wide_gamut_is_converted_to_srgb(profile: bytes) -> None:
    """Against the formula, with matrices: colours inside of sRGB come out where they are, grey stays grey."""
    names = ("red_colorant", "green_colorant", "blue_colorant")
    columns = [getattr(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile, name)[0] for name in names]
    theirs = np.array(columns).T
    ours = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    shown = np.array([[[150, 120, 100], [90, 110, 120], [128, 128, 128], [60, 60, 60]]], np.uint8)
    linear = np.linalg.solve(ours, theirs @ ((shown.reshape(-1, 3) / 255) ** 2.2).T).T
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055) * 255
    found = np.asarray(images.decode(encoded(Image.fromarray(shown), icc_profile=profile))).reshape(-1, 3)
    np.testing.assert_allclose(found, wanted, atol=2.5)
    assert abs(found.astype(int) - shown.reshape(-1, 3)).max() > 5


def test_a_transparent_picture_of_a_wide_gamut_is_converted_and_on_white() -> None:
    found = corners(images.decode(encoded(CLEAR, icc_profile=P3)))
    assert found[1:3] == ON_WHITE[1:3]
    assert found[0] == corners(images.decode(encoded(CLEAR.convert("RGB"), icc_profile=P3)))[0] != ON_WHITE[0]


def test_a_profile_of_srgb_by_any_name_changes_nothing() -> None:
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG"):
        content = encoded(drawn, kind, icc_profile=own)
        np.testing.assert_array_equal(np.asarray(images.decode(content)), as_before(content))


@pytest.mark.parametrize("profile", [b"no profile", P3[:200], P3.replace(b"RGB ", b"CMYK"), SRGB.replace(b"rXYZ", b"xxxx")])
def test_a_broken_profile_costs_no_picture(profile: bytes) -> None:
    content = encoded(CLEAR.convert("RGB"), "JPEG", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(images.decode(content)), as_before(content))


def test_a_grey_picture_with_a_profile_of_colours_stays_grey() -> None:
    content = encoded(CLEAR.getchannel("R"), "JPEG", icc_profile=P3)
    found = np.asarray(images.decode(content)).astype(int)
    assert abs(found - found[..., :1]).max() <= 1
    assert abs(found - as_before(content)).max() <= 8


def test_inks_become_colours() -> None:
    """An Adobe JPEG keeps CMYK inverted: read as it stands, it would be a negative."""
    inks = CLEAR.convert("RGB").convert("CMYK")
    for found, wanted in zip(corners(images.decode(encoded(inks, "JPEG", quality=95))), corners(CLEAR.convert("RGB")), strict=True):
        assert found == pytest.approx(wanted, abs=8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animated_picture_is_its_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((200, 30, 30), (30, 30, 200)))
    content = encoded(first, kind, save_all=True, append_images=[second])
    assert images.decode(content).getpixel((8, 8)) == pytest.approx((200, 30, 30), abs=4)
    assert images.inspect(content).format == kind


def test_a_heic_picture_is_read_and_shown_to_browsers_as_a_jpeg() -> None:
    pytest.importorskip("pillow_heif")
    content = golden_pictures.golden_pictures()["heic"]
    assert images.inspect(content).format == "HEIC"
    assert corners(images.decode(content))[0] == pytest.approx(COLOURS[0][:3], abs=3)
    assert corners(images.decode(content))[3] == pytest.approx((223, 223, 223), abs=3)
    media, shown = images.for_browsers(content)
    assert (media, Image.open(io.BytesIO(shown)).format) == ("image/jpeg", "JPEG")
    with pytest.raises(InputError, match="cannot be decoded"):
        images.decode(content[: len(content) // 2])
    assert images.for_browsers(encoded(CLEAR)) == ("image/png", encoded(CLEAR))


def test_a_heic_picture_without_its_decoder_is_refused_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    content = golden_pictures.golden_pictures()["heic"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r'a HEIC picture, which pillow_heif decodes.* → .*pip install "moon_ops\[heic\]"'):
        images.decode(content)


def test_damaged_heic_and_gif_are_refused_or_read_and_never_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("heic", "gif"):
        good, refused = golden_pictures.golden_pictures()[kind], 0
        for _ in range(300):
            bad = bytearray(good)
            bad[int(rng.integers(12, len(bad)))] = int(rng.integers(256))
            try:
                images.inspect(bytes(bad))
            except InputError:
                refused += 1
        assert 0 < refused < 300


def test_a_large_photograph_is_reduced_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    drawn = Image.fromarray(np.stack([np.tile(ramp, (300, 1)), np.full((300, 400), 90, np.uint8), np.tile(ramp[::-1], (300, 1))], -1))
    whole = images.pixels(drawn, 8).astype(int)
    monkeypatch.setattr(images, "FULL", 30_000)  # a quarter of 400 x 300
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("AVIF", {})):
        content = encoded(drawn, kind, **options)
        shown = images.decode(content)
        assert shown.size == (200, 150)
        assert abs(images.pixels(shown, 8).astype(int) - whole).max() <= 8
        found = images.inspect(content)
        assert (found.width, found.height) == (400, 300)
    transparent = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    assert images.decode(encoded(transparent)).getpixel((9, 9)) == (255, 255, 255)
    assert images.decode(encoded(transparent.quantize(2))).size == (200, 150)


def test_only_what_is_decoded_by_rows_may_be_very_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(images, "MAX_STREAMED", 1200)
    monkeypatch.setattr(images, "FULL", 300)
    assert images.decode(encoded(Image.new("RGB", (40, 30)), "JPEG")).size == (20, 15)
    for content in (encoded(Image.new("RGB", (40, 30)), "JPEG", progressive=True), encoded(Image.new("RGB", (40, 30)))):
        with pytest.raises(InputError, match="40x30 is more than 1,000 pixels"):
            images.decode(content)
    with pytest.raises(InputError, match="41x30 is more than 1,200 pixels"):
        images.decode(encoded(Image.new("RGB", (41, 30)), "JPEG"))


def test_the_documented_bounds_take_what_phones_make() -> None:
    assert (images.FULL, images.MAX_PIXELS, images.MAX_STREAMED, images.MAX_BYTES) == (40_000_000, 80_000_000, 220_000_000, 40 * 2**20)
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    bomb = golden_pictures._chunk(b"IHDR", header) + golden_pictures._chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(InputError, match="9000x9000 is more than 80,000,000 pixels"):
        images.decode(b"\x89PNG\r\n\x1a\n" + bomb)


def test_opaque_pictures_keep_their_pixels_bit_by_bit(shop: Path) -> None:
    """Those of the demo's shop, and of every opaque mode: their vectors stay what they were."""
    paths = sorted((shop / "images").rglob("*.jpg"))
    assert len(paths) > 100
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8))
    made = [encoded(drawn.convert(mode)) for mode in ("RGB", "L", "1", "RGBA", "LA")]
    made += [encoded(drawn.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")]
    made += [encoded(drawn.quantize(64)), encoded(drawn, "WEBP"), encoded(drawn, "JPEG", progressive=True)]
    for content in [*(path.read_bytes() for path in paths), *made]:
        np.testing.assert_array_equal(np.asarray(images.decode(content)), as_before(content))


def test_golden_pictures_become_the_pixels_of_every_release() -> None:
    """Of each kind the four colours, on white; another decoder, another rule, or no alpha shows here."""
    made = golden_kinds()
    assert changed_kinds(made) == []
    for kind, content in golden_pictures.golden_pictures().items():
        shown = corners(images.decode(content))
        wanted = [(*colour[:3],) for colour in COLOURS]
        wanted[3] = {"gif": (255, 255, 255)}.get(kind, wanted[3])
        if "transparent" in kind or kind in ("png palette", "webp", "avif", "heic"):
            wanted[3] = (223, 223, 223)
        if "grey" in kind:
            wanted = [(colour[1],) * 3 for colour in wanted]
        if "turned" in kind:
            wanted = [wanted[at] for at in (2, 0, 3, 1)]
        if "p3" in kind:
            wanted = [(220, 0, 18), (0, 164, 35), (43, 58, 199), (129, 129, 129)]
        assert np.abs(np.array(shown) - np.array(wanted)).max() <= 12, kind  # JPEG is at 11


def test_a_kind_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = golden_kinds()
    moved = bytes(min(level + 2, 255) for level in bytes.fromhex(made["webp"])).hex()
    assert changed_kinds({**made, "webp": moved}) == []  # rounding of another processor
    moved = bytes(min(level + 3, 255) for level in bytes.fromhex(made["webp"])).hex()
    assert changed_kinds({**made, "webp": moved, "png": "00", "jxl": "00"}) == ["png", "webp", "jxl"]
    monkeypatch.setattr(images, "on_white", lambda picture: picture.convert("RGB"))
    assert {"png transparent", "png grey 16", "png display p3"} <= set(changed_kinds(made))


def test_a_palette_that_is_not_there_is_a_broken_picture() -> None:
    """Pillow ends in an assertion, which was a 500 of the service and the end of an ingest."""
    chunk = golden_pictures._chunk
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(20))), chunk(b"IEND", b""))
    with pytest.raises(InputError, match="cannot be decoded"):
        images.decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
