"""Colours of a decoded picture: eight bits, sRGB, on white, whatever its file says of depth, transparency, inks and gamut.

An opaque picture of eight bits without a profile, or with one of sRGB, keeps its bytes exactly. H, W: the picture's sides.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

DEEP = ("I", "I;16", "I;16L", "I;16B")  # Pillow's modes of grey with more than eight bits
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # what a profile calls the colours that it is for → Pillow's mode of them
SAME = 2  # of 255: a profile that moves no colour further is sRGB, however it is called
STEPS = 6  # per channel, of the colours that a profile is tried on


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB [H, W]: what is transparent is white, as a shop's page shows it; colours are those that its profile means."""
    profile = picture.info.get("icc_profile")
    picture = with_alpha(eight_bits(picture))
    colours = _in_srgb(_opaque(picture), profile)
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours
    white = Image.new("RGB", picture.size, "white")
    white.paste(colours, mask=alpha)
    return white


def eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of eight: the high byte, as Pillow reads colours of 16 bits. Its own conversion makes most of it white."""
    if picture.mode not in DEEP:
        return picture
    values = np.asarray(picture)
    grey = Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    grey.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return grey


def with_alpha(picture: Image.Image) -> Image.Image:
    """The picture with transparency as a channel of its own (LA, RGBA), however its file says it; as it is where there is none."""
    if picture.mode in ("LA", "RGBA") or not picture.has_transparency_data:
        return picture
    clear = picture.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of colours of 16 bits, of which Pillow kept eight
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    return picture.convert("LA" if picture.mode in ("1", "L") else "RGBA")


def _opaque(picture: Image.Image) -> Image.Image:
    """The colours alone: L, CMYK or RGB."""
    if picture.mode in ("1", "L", "LA"):
        return picture.convert("L")
    return picture if picture.mode in ("RGB", "CMYK") else picture.convert("RGB")


def _in_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB [H, W], converted from the ``profile``; one that is absent, broken, or for other colours counts as sRGB."""
    if profile:
        for mode in dict.fromkeys((colours.mode, "RGB" if colours.mode == "L" else colours.mode)):  # grey is given RGB profiles, too
            transform = _transform(profile, mode)
            if transform is not None:
                return ImageCms.applyTransform(colours.convert(mode), transform) or colours.convert("RGB")
    return colours.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's colours in ``mode`` to sRGB; None where there is nothing to convert, or the profile cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if SPACES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        flags = ImageCms.Flags.NOCACHE  # its cache of one colour is not for several threads
        made = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
        tried = _probe(mode)
        moved = np.asarray(ImageCms.applyTransform(tried, made), np.int16) - np.asarray(tried.convert("RGB"), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return made if mode == "CMYK" or int(abs(moved).max()) > SAME else None


def _probe(mode: str) -> Image.Image:
    """Colours of the whole space, a pixel each."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, STEPS).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), -1).reshape(1, -1, bands)
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())
