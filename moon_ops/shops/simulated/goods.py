"""Silhouettes of what is carried or stands at home. Each takes a variant (0 to 2) and six proportions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moon_ops.shops.simulated.outline import Part, Points, Role, Silhouette, arch, between, both_sides, curve, polygon, rounded


def handbag(variant: int, s: Sequence[float]) -> Silhouette:
    """0 tote, 1 flap bag, 2 half moon. Proportions: top width, bottom width, height, handle, handle width, clasp."""
    upper, lower, top = between(0.2, 0.31, s[0]), between(0.22, 0.34, s[1]), between(0.5, 0.38, s[2])
    bottom, handle, grip = 0.84, between(0.12, 0.27, s[3]), upper * between(0.35, 0.85, s[4])
    parts = [Part(Role.SECONDARY, arch(0.5, top + 0.03, grip, handle + 0.03), 0.9, width=0.032)]
    if variant == 2:
        body = [
            (0.0, top + 0.03),
            (upper * 0.8, top),
            (upper, top + 0.06),
            (lower, 0.66),
            (lower * 0.6, bottom),
            (0.0, bottom + 0.01),
        ]
        parts.append(Part(Role.PRIMARY, curve(both_sides(body))))
        parts.append(
            Part(
                Role.METAL,
                curve([(0.5 - upper, top + 0.05), (0.5, top + 0.075), (0.5 + upper, top + 0.05)], closed=False),
                width=0.014,
            )
        )
    else:
        side = [(upper, top), (upper, top), (lower, bottom - 0.03), (lower - 0.03, bottom)]
        parts.append(Part(Role.PRIMARY, curve(both_sides(side))))
    if variant == 0:
        parts.append(Part(Role.SECONDARY, arch(0.5, top + 0.08, grip * 0.9, handle + 0.02), width=0.03))
        parts.append(Part(Role.SECONDARY, rounded(0.5, bottom - 0.035, lower * 0.99, 0.035, power=9), 0.95))
    if variant == 1:
        parts += _flap(upper, top, between(0.14, 0.24, s[5]))
    return Silhouette(tuple(parts), (0.5, 0.68, 0.085), (0.5 - lower * 0.66, bottom - 0.1, 0.03))


def _flap(half: float, top: float, drop: float) -> list[Part]:
    """The flap of a bag with its clasp."""
    flap = [
        (half, top - 0.005),
        (half, top - 0.005),
        (half * 0.98, top + drop * 0.6),
        (half * 0.6, top + drop),
        (0.0, top + drop * 1.08),
    ]
    return [
        Part(Role.SECONDARY, curve(both_sides(flap))),
        Part(Role.METAL, rounded(0.5, top + drop, 0.026, 0.026, power=3)),
    ]


def backpack(variant: int, s: Sequence[float]) -> Silhouette:
    """0 pocket, 1 flap, 2 side pockets. Proportions: width, top, roundness, pocket width, pocket height, straps."""
    half, top, power = between(0.2, 0.28, s[0]), between(0.26, 0.16, s[1]), between(2.8, 7.0, s[2])
    bottom = 0.88
    middle, tall = (top + bottom) / 2, (bottom - top) / 2
    pocket, high = half * between(0.55, 0.85, s[3]), between(0.1, 0.17, s[4])
    parts = [Part(Role.DARK, arch(0.5, top + 0.04, 0.07, 0.1), width=0.026)]
    parts += [Part(Role.SECONDARY, _strap(k, half, s[5]), 0.8, width=0.045) for k in (-1, 1)]
    if variant == 2:
        parts += [Part(Role.SECONDARY, rounded(0.5 + k * half, 0.73, 0.065, 0.11, power=4), 0.92) for k in (-1, 1)]
    parts.append(Part(Role.PRIMARY, rounded(0.5, middle, half, tall, power=power)))
    if variant == 1:
        parts += _lid(half, top, between(0.18, 0.28, s[4]))
    else:
        parts.append(Part(Role.SECONDARY, rounded(0.5, bottom - high - 0.04, pocket, high, power=5)))
        parts.append(
            Part(
                Role.METAL,
                polygon([(0.5 - pocket * 0.7, 0.85 - high * 1.6), (0.5 + pocket * 0.7, 0.85 - high * 1.6)]),
                width=0.012,
            )
        )
    return Silhouette(
        tuple(parts),
        (0.5, between(top, bottom, 0.32 if variant != 1 else 0.62), 0.085),
        (0.5 + pocket * 0.55, 0.8, 0.026),
    )


def _strap(side: int, half: float, width: float) -> Points:
    x = 0.5 + side * half
    return curve([(x - side * 0.06, 0.34), (x + side * between(0.03, 0.09, width), 0.52), (x - side * 0.02, 0.8)], closed=False)


def _lid(half: float, top: float, drop: float) -> list[Part]:
    """The lid of a backpack and the two buckles that hold it."""
    lid = rounded(0.5, top + drop * 0.55, half * 1.03, drop * 0.62, power=4)
    parts = [Part(Role.SECONDARY, lid)]
    for side in (-1, 1):
        x = 0.5 + side * half * 0.5
        parts.append(Part(Role.DARK, polygon([(x, top + drop * 0.8), (x, top + drop * 1.75)]), width=0.024))
        parts.append(Part(Role.METAL, rounded(x, top + drop * 1.35, 0.022, 0.02, power=8)))
    return parts


def watch(variant: int, s: Sequence[float]) -> Silhouette:
    """0 round, 1 square, 2 octagon. Proportions: strap, taper, case, bezel, hour hand, minute hand."""
    strap, case, bezel = between(0.075, 0.125, s[0]), between(0.18, 0.25, s[2]), between(0.025, 0.05, s[3])
    end = strap * between(0.65, 1.0, s[1])
    band = [(end, 0.06), (end, 0.06), (strap, 0.36), (strap, 0.64), (end, 0.94), (end, 0.94)]
    parts = [Part(Role.PRIMARY, curve(both_sides(band)))]
    parts.append(Part(Role.METAL, rounded(0.5 + case + 0.012, 0.5, 0.026, 0.022, power=5), 0.85))
    parts += [Part(Role.METAL, _case(variant, case)), Part(Role.SECONDARY, _case(variant, case - bezel), 1.03)]
    parts += [Part(Role.PRINT, _tick(hour, case - bezel), width=0.014) for hour in range(0, 12, 3)]
    parts += [Part(Role.PRINT, _hand(between(0, 12, s[4]), (case - bezel) * 0.5), width=0.024)]
    parts += [Part(Role.PRINT, _hand(between(0, 12, s[5]), (case - bezel) * 0.78), width=0.015)]
    return Silhouette(tuple(parts), (0.5, 0.8, 0.058), (0.5, 0.5 - (case - bezel) * 0.45, 0.026))


def _case(variant: int, radius: float) -> Points:
    if variant == 2:
        angle = (np.arange(8) + 0.5) * np.pi / 4
        return np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1)
    return rounded(0.5, 0.5, radius, radius, power=2 if variant == 0 else 6)


def _hand(hour: float, length: float) -> Points:
    angle = hour / 12 * 2 * np.pi
    return polygon([(0.5, 0.5), (0.5 + length * np.sin(angle), 0.5 - length * np.cos(angle))])


def _tick(hour: float, radius: float) -> Points:
    x, y = np.sin(hour / 12 * 2 * np.pi), -np.cos(hour / 12 * 2 * np.pi)
    return polygon([(0.5 + 0.8 * radius * x, 0.5 + 0.8 * radius * y), (0.5 + 0.93 * radius * x, 0.5 + 0.93 * radius * y)])


def mug(variant: int, s: Sequence[float]) -> Silhouette:
    """0 straight, 1 bowl, 2 on a saucer. Proportions: width, height, taper, handle size, handle height, rim."""
    half, top, bottom = between(0.16, 0.25, s[0]), between(0.36, 0.2, s[1]), 0.82
    foot = half * between(0.7, 1.1, s[2]) if variant != 1 else half * between(0.4, 0.6, s[2])
    x, reach = 0.44, between(0.09, 0.17, s[3])
    y0, y1 = between(top + 0.06, top + 0.16, s[4]), between(0.62, 0.7, s[4])
    ear = [
        (x + half * 0.9, y0),
        (x + half + reach, y0 + 0.02),
        (x + half + reach, y1 - 0.05),
        (x + (half + foot) * 0.45, y1),
    ]
    side = [
        (half, top),
        (half, top),
        (half * 0.99, (top + bottom) / 2),
        (foot, bottom),
        (foot, bottom),
        (0.0, bottom + 0.025),
    ]
    parts = [Part(Role.SECONDARY, curve(ear, closed=False), width=between(0.035, 0.055, s[5]))]
    if variant == 2:
        parts.insert(0, Part(Role.SECONDARY, rounded(x, bottom + 0.02, half + 0.12, 0.035, power=2.4), 0.92))
    parts.append(Part(Role.PRIMARY, curve(both_sides(side, centre=x))))
    parts.append(Part(Role.SECONDARY, rounded(x, top, half, between(0.03, 0.05, s[5]), power=2)))
    parts.append(Part(Role.DARK, rounded(x, top + 0.004, half * 0.88, between(0.02, 0.036, s[5]), power=2), 1.3))
    return Silhouette(tuple(parts), (x, (top + bottom) / 2 + 0.03, 0.1), (x + half * 0.5, bottom - 0.07, 0.028))


def lamp(variant: int, s: Sequence[float]) -> Silhouette:
    """0 column, 1 ceramic base, 2 tripod. Proportions: shade top, shade bottom, shade height, base, stem, bulge."""
    upper, lower, height = between(0.08, 0.19, s[0]), between(0.2, 0.32, s[1]), between(0.22, 0.36, s[2])
    top, ground = between(0.16, 0.08, s[4]), 0.9
    y, base = top + height, between(0.1, 0.2, s[3])
    parts = [Part(Role.LIGHT, rounded(0.5, y, lower * 0.8, 0.03, power=2))]
    if variant == 0:
        parts.append(Part(Role.SECONDARY, rounded(0.5, (y + ground) / 2, between(0.012, 0.035, s[5]), (ground - y) / 2, power=10)))
        parts.append(Part(Role.SECONDARY, rounded(0.5, ground, base, 0.025, power=3)))
    elif variant == 1:
        belly = between(0.09, 0.19, s[5])
        vase = [
            (0.025, y),
            (0.03, y + 0.06),
            (belly, between(y, ground, between(0.45, 0.75, s[4]))),
            (base * 0.6, ground),
            (base * 0.6, ground),
        ]
        parts.append(Part(Role.SECONDARY, curve(both_sides(vase))))
    else:
        parts += [Part(Role.SECONDARY, polygon([(0.5, y - 0.02), (0.5 + k * (base + 0.06), ground)]), width=0.026) for k in (-1, 0.12, 1)]
    parts.append(Part(Role.PRIMARY, curve(both_sides([(upper, top), (upper, top), (lower, y), (lower, y), (0.0, y + 0.022)]))))
    return Silhouette(tuple(parts), (0.5, top + height * 0.56, 0.085), (0.5 + lower * 0.55, y - 0.05, 0.026))


def chair(variant: int, s: Sequence[float]) -> Silhouette:
    """0 slat back, 1 armchair, 2 shell. Proportions: width, seat height, back height, leg splay, legs, padding."""
    half, seat, back = between(0.18, 0.26, s[0]), between(0.62, 0.53, s[1]), between(0.26, 0.42, s[2])
    pad, splay, leg = between(0.03, 0.07, s[5]), between(-0.01, 0.07, s[3]), between(0.022, 0.045, s[4])
    parts = _legs(half, seat + pad, splay, leg)
    if variant == 0:
        posts = [
            Part(Role.SECONDARY, polygon([(0.5 + k * half * 0.9, seat), (0.5 + k * half * 0.84, seat - back)]), width=leg) for k in (-1, 1)
        ]
        parts += posts + [Part(Role.PRIMARY, rounded(0.5, seat - back * t, half * 0.9, 0.036, power=5)) for t in (0.42, 0.9)]
    elif variant == 1:
        parts.append(Part(Role.PRIMARY, rounded(0.5, seat - back / 2 + 0.02, half, back / 2 + 0.05, power=between(3, 6, s[4]))))
        parts += [Part(Role.PRIMARY, rounded(0.5 + k * (half + 0.02), seat - 0.035, 0.05, 0.11, power=4), 0.88) for k in (-1, 1)]
    else:
        shell = [
            (0.0, seat - back),
            (half * 0.8, seat - back * 0.85),
            (half, seat - back * 0.3),
            (half * 0.9, seat + 0.02),
            (0.0, seat + 0.04),
        ]
        parts.append(Part(Role.PRIMARY, curve(both_sides(shell))))
    cushion = Role.PRIMARY if variant == 0 else Role.SECONDARY
    parts.append(Part(cushion, rounded(0.5, seat + pad / 2, half * (1.04 if variant != 1 else 0.85), pad, power=4), 1.04))
    y = seat - back * (0.66 if variant == 0 else 0.5)
    return Silhouette(tuple(parts), (0.5, y, 0.05 if variant == 0 else 0.09), (0.5 + half * 0.6, seat + pad / 2, 0.026))


def _legs(half: float, y: float, splay: float, width: float) -> list[Part]:
    """Four legs, the rear pair narrower and darker."""
    parts = []
    for side, inset, shade in ((-1, 0.55, 0.72), (1, 0.55, 0.72), (-1, 0.88, 1.0), (1, 0.88, 1.0)):
        foot = 0.5 + side * (half * inset + splay)
        end = 0.92 if shade == 1.0 else 0.86
        parts.append(Part(Role.SECONDARY, polygon([(0.5 + side * half * inset, y - 0.02), (foot, end)]), shade, width))
    return parts
