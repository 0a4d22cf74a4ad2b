"""Silhouettes of what is worn. Each takes a variant (0 to 2) and six proportions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from moon_ops.shops.simulated.outline import Part, Role, Silhouette, arch, between, both_sides, curve, polygon, rounded


def _sleeve(side: int, shoulder: float, top: float, length: float, width: float, drop: float) -> list[tuple[float, float]]:
    """A sleeve from the shoulder outwards; ``drop`` is how far it hangs per unit of length."""
    x0 = 0.5 + side * shoulder
    x1 = 0.5 + side * (shoulder + length * 0.62)
    y1 = top + length * drop
    return [
        (x0, top),
        (x1, y1),
        (x1 - side * width * 0.8, y1 + width * 0.5),
        (0.5 + side * (shoulder - 0.045), top + 0.16),
    ]


def dress(variant: int, s: Sequence[float]) -> Silhouette:
    """0 A-line, 1 sheath, 2 tiered. Proportions: neck width, neck depth, sleeve, waist height, flare, length."""
    neck, depth, waist = between(0.05, 0.1, s[0]), between(0.03, 0.13, s[1]), between(0.36, 0.47, s[3])
    hem = between(0.11, 0.17, s[4]) if variant == 1 else between(0.2, 0.36, s[4])
    bottom, shoulder, top = between(0.66, 0.92, s[5]), 0.15, 0.11
    hip = (0.45 * hem + 0.055) if variant != 1 else 0.125
    profile = [
        (0.0, top + depth),
        (0.0, top + depth),
        (neck, top),
        (neck, top),
        (shoulder, top + 0.025),
        (shoulder, top + 0.025),
    ]
    profile += [(0.115, 0.25), (0.088, waist), (hip, waist + 0.12), (hem, bottom), (hem, bottom), (0.0, bottom + 0.02)]
    parts = []
    if s[2] > 0.25:
        sleeve = between(0.1, 0.36, s[2])
        parts = [Part(Role.PRIMARY, polygon(_sleeve(k, shoulder, top + 0.025, sleeve, 0.1, 1.25)), 0.9) for k in (-1, 1)]
    parts.append(Part(Role.PRIMARY, curve(both_sides(profile))))
    parts.append(Part(Role.SECONDARY, rounded(0.5, waist, 0.094, 0.016, power=8)))
    if variant == 2:
        parts += [_tier(hip, hem, waist, bottom, t) for t in (0.42, 0.72, 1.0)]
    return Silhouette(tuple(parts), (0.5, 0.29, 0.06), (0.5, min(bottom - 0.07, 0.8), 0.03))


def _tier(hip: float, hem: float, waist: float, bottom: float, t: float) -> Part:
    """A band in the second colour across a tiered skirt, at fraction ``t`` of its length."""
    y = between(waist + 0.06, bottom, t)
    half = between(0.62 * hip + 0.05, hem, t**0.9) * 0.96
    return Part(Role.SECONDARY, polygon([(0.5 - half, y - 0.028), (0.5 + half, y - 0.028), (0.5 + half, y), (0.5 - half, y)]))


def t_shirt(variant: int, s: Sequence[float]) -> Silhouette:
    """0 crew neck, 1 raglan, 2 polo with pocket. Proportions: width, length, sleeve, sleeve width, neck, hem."""
    chest, bottom, sleeve = between(0.17, 0.225, s[0]), between(0.7, 0.88, s[1]), between(0.14, 0.42, s[2])
    neck, hem, top = between(0.06, 0.095, s[4]), chest * between(0.92, 1.15, s[5]), 0.17
    profile = [(0.0, top + 0.055), (neck, top), (neck, top), (chest, top + 0.05), (chest, top + 0.05)]
    profile += [(chest - 0.012, 0.36), (hem, bottom), (hem, bottom), (0.0, bottom + 0.012)]
    role = Role.SECONDARY if variant == 1 else Role.PRIMARY
    arm = between(0.1, 0.15, s[3])
    parts = [Part(role, polygon(_sleeve(k, chest, top + 0.05, sleeve, arm, 1.15)), 0.93) for k in (-1, 1)]
    parts.append(Part(Role.PRIMARY, curve(both_sides(profile))))
    collar = curve([(0.5 - neck, top), (0.5, top + 0.065), (0.5 + neck, top)], closed=False)
    parts.append(Part(Role.SECONDARY, collar, width=0.026 if variant != 2 else 0.045))
    if variant == 2:
        parts.append(Part(Role.SECONDARY, rounded(0.5, top + 0.13, 0.02, 0.075, power=10)))
        parts.append(Part(Role.SECONDARY, rounded(0.5 + 0.55 * chest, 0.4, 0.045, 0.05, power=6), 0.95))
    return Silhouette(tuple(parts), (0.5, 0.5, 0.11), (0.5 - 0.55 * chest, 0.34, 0.028))


def trousers(variant: int, s: Sequence[float]) -> Silhouette:
    """0 straight, 1 with cuffs, 2 side stripe. Proportions: waist, hip, length, leg width, stance, rise."""
    waist, hip, bottom = between(0.12, 0.165, s[0]), between(0.15, 0.19, s[1]), between(0.62, 0.93, s[2])
    leg, stance, crotch = between(0.08, 0.15, s[3]), between(0.04, 0.09, s[4]), between(0.33, 0.4, s[5])
    outer = between(hip, stance + leg, min(1.0, (bottom - 0.36) / 0.5))
    inner = max(0.012, outer - max(leg, 0.08))
    right = [(0.5, 0.1), (0.5 + waist, 0.1), (0.5 + hip, crotch - 0.08), (0.5 + outer, bottom), (0.5 + inner, bottom)]
    right.append((0.5, crotch))
    left = [(1 - x, y) for x, y in right]
    parts = [Part(Role.PRIMARY, polygon(right)), Part(Role.PRIMARY, polygon(left), 0.95)]
    parts.append(Part(Role.SECONDARY, rounded(0.5, 0.115, waist, 0.022, power=10)))
    if variant == 1:
        half, y = (outer - inner) / 2 + 0.008, bottom - 0.02
        parts += [Part(Role.SECONDARY, rounded(0.5 + k * (outer + inner) / 2, y, half, 0.028, power=10)) for k in (-1, 1)]
    if variant == 2:
        edge = [(0.5 + waist - 0.02, 0.14), (0.5 + hip - 0.025, crotch - 0.08), (0.5 + outer - 0.025, bottom)]
        parts += [Part(Role.SECONDARY, polygon([(0.5 + k * (x - 0.5), y) for x, y in edge]), width=0.03) for k in (-1, 1)]
    return Silhouette(tuple(parts), (0.5 + 0.55 * hip, crotch - 0.02, 0.05), (0.5 - 0.5 * hip, 0.2, 0.026))


def hat(variant: int, s: Sequence[float]) -> Silhouette:
    """0 cap, 1 wide brim, 2 beanie. Proportions: width, height, brim, band, roundness, tip."""
    return (_cap, _brimmed, _beanie)[variant](s)


def _cap(s: Sequence[float]) -> Silhouette:
    half, height, brim = between(0.2, 0.27, s[0]), between(0.26, 0.36, s[1]), between(0.14, 0.27, s[2])
    x, y, power = 0.44, 0.62, between(2.0, 3.0, s[4])
    visor = curve([(x + half * 0.35, y - 0.04), (x + half + brim, y + 0.02), (x + half + brim * 0.9, y + 0.07), (x, y + 0.03)])
    parts = [
        Part(Role.PRIMARY, arch(x, y, half, height, power=power)),
        Part(Role.SECONDARY, visor),
        Part(Role.SECONDARY, arch(x, y, half * 0.97, between(0.04, 0.09, s[3]), power=6), 0.94),
        Part(Role.SECONDARY, rounded(x, y - height, 0.022, 0.018, power=2)),
        Part(Role.DARK, arch(x - half * 0.1, y, half * 0.42, height * 0.93), width=0.006),
    ]
    return Silhouette(tuple(parts), (x + 0.01, y - height * 0.52, 0.085), (x - half * 0.66, y - height * 0.3, 0.025))


def _brimmed(s: Sequence[float]) -> Silhouette:
    half, height, brim = between(0.15, 0.21, s[0]), between(0.22, 0.36, s[1]), between(0.3, 0.41, s[2])
    y, power, band = 0.64, between(2.4, 5.0, s[4]), between(0.05, 0.1, s[3])
    dip = between(-0.03, 0.07, s[5])
    crown = [
        (0.0, y - height + dip),
        (half * 0.55, y - height),
        (half * 0.92, y - height * 0.72),
        (half, y),
        (0.0, y + 0.03),
    ]
    parts = [
        Part(Role.PRIMARY, rounded(0.5, y, brim, between(0.05, 0.09, s[5]), power=2.2), 0.9),
        Part(
            Role.PRIMARY,
            curve(both_sides(crown)) if power < 4 else rounded(0.5, y - height / 2, half, height / 2 + 0.03),
        ),
        Part(Role.SECONDARY, rounded(0.5, y - band / 2 - 0.005, half * 1.01, band / 2 + 0.01, power=8)),
    ]
    return Silhouette(tuple(parts), (0.5, y - height * 0.62, 0.065), (0.5 + half * 0.7, y - band / 2, 0.026))


def _beanie(s: Sequence[float]) -> Silhouette:
    half, height, cuff = between(0.2, 0.28, s[0]), between(0.34, 0.5, s[1]), between(0.05, 0.1, s[3])
    y, ball = 0.74, between(0.0, 0.1, s[2])
    parts = [Part(Role.PRIMARY, arch(0.5, y, half, height, power=between(1.8, 2.8, s[4])))]
    if ball > 0.03:
        parts.append(Part(Role.SECONDARY, rounded(0.5, y - height, ball, ball, power=2)))
    parts.append(Part(Role.SECONDARY, rounded(0.5, y, half * 1.04, cuff, power=6)))
    return Silhouette(tuple(parts), (0.5, y - height * 0.5, 0.085), (0.5 + half * 0.6, y, 0.032))


def sneaker(variant: int, s: Sequence[float]) -> Silhouette:
    """0 runner, 1 toe cap, 2 slip-on. Proportions: ankle, sole, toe height, length, instep, stripe."""
    ankle, sole, toe = between(0.3, 0.5, s[0]), between(0.045, 0.085, s[1]), between(0.09, 0.15, s[2])
    heel_x, toe_x, ground = between(0.14, 0.09, s[3]), between(0.85, 0.92, s[3]), 0.76
    y, throat = ground - sole, between(0.37, 0.43, s[4])
    upper = [(heel_x, y), (heel_x, y), (heel_x + 0.005, ankle + 0.12), (heel_x + 0.025, ankle), (heel_x + 0.025, ankle)]
    upper += [(heel_x + 0.13, ankle + 0.03), (throat - 0.02, ankle - 0.03), (throat + 0.03, ankle - 0.01)]
    upper += [
        (between(throat, toe_x, 0.45), y - toe * 1.25),
        (toe_x - 0.1, y - toe),
        (toe_x, y - toe * 0.35),
        (toe_x, y),
        (toe_x, y),
    ]
    base = [(heel_x - 0.015, y - 0.015), (toe_x + 0.02, y - 0.015), (toe_x + 0.012, ground), (heel_x, ground)]
    parts = [Part(Role.PRIMARY, curve(upper)), *_sneaker_trim(variant, s, ankle, throat, y, toe, toe_x)]
    parts.append(Part(Role.SECONDARY if s[5] > 0.5 else Role.LIGHT, polygon(base)))
    parts.append(Part(Role.DARK, polygon([(heel_x, ground), (toe_x + 0.01, ground)]), width=0.02))
    return Silhouette(tuple(parts), (heel_x + 0.16, y - 0.13, 0.055), (toe_x - 0.16, y - toe * 0.5, 0.026))


def _sneaker_trim(variant: int, s: Sequence[float], ankle: float, throat: float, y: float, toe: float, toe_x: float) -> list[Part]:
    """Stripe, toe cap or elastic in the second colour, and laces."""
    vamp_x, vamp_y = between(throat, toe_x, 0.4), y - toe * 1.3  # where the laces end
    if variant == 2:
        elastic = [
            (throat - 0.06, y - 0.1),
            (throat - 0.02, ankle),
            (throat + 0.05, ankle + 0.02),
            (throat + 0.06, y - 0.08),
        ]
        return [Part(Role.SECONDARY, curve(elastic))]
    rows = [(between(throat, vamp_x, t), between(ankle, vamp_y, t) + 0.01) for t in (0.25, 0.55, 0.85)]
    laces = [Part(Role.LIGHT, polygon([(x, row), (x - 0.06, row + 0.055)]), width=0.017) for x, row in rows]
    if variant == 1:
        cap = [
            (toe_x - 0.15, y),
            (toe_x - 0.15, y),
            (toe_x - 0.13, y - toe),
            (toe_x, y - toe * 0.35),
            (toe_x, y),
            (toe_x, y),
        ]
        return [Part(Role.SECONDARY, curve(cap)), *laces]
    x, rise = between(0.3, 0.4, s[5]), (y - ankle) * 0.55
    stripe = [(x, y - rise), (x + 0.06, y - rise), (x + 0.17, y), (x + 0.08, y)]
    return [Part(Role.SECONDARY, polygon(stripe)), *laces]


def boot(variant: int, s: Sequence[float]) -> Silhouette:
    """0 Chelsea, 1 lace-up, 2 cuffed. Proportions: shaft height, shaft width, heel, toe length, toe point, sole."""
    top, shaft, heel = between(0.1, 0.36, s[0]), between(0.2, 0.3, s[1]), between(0.02, 0.11, s[2])
    back, toe_x, ground = 0.24, between(0.72, 0.86, s[3]), 0.86
    y, tip = ground - heel, between(0.09, 0.045, s[4])
    upper = [
        (back, y),
        (back, y),
        (back + 0.01, 0.5),
        (back - 0.01, top),
        (back - 0.01, top),
        (back + shaft, top + 0.01),
    ]
    upper += [(back + shaft, top + 0.01), (back + shaft - 0.01, 0.52), (0.62, 0.655), (toe_x - 0.03, 0.86 - tip * 1.7)]
    upper += [(toe_x, ground - 0.02), (toe_x, ground - 0.02), (0.52, ground - 0.02), (0.45, y), (0.45, y)]
    parts = [Part(Role.PRIMARY, curve(upper)), *_boot_trim(variant, s, back, shaft, top)]
    sole = between(0.014, 0.03, s[5])
    parts.append(
        Part(
            Role.DARK,
            polygon([(back, y), (back + 0.16, y), (back + 0.14, ground + sole), (back + 0.01, ground + sole)]),
        )
    )
    parts.append(
        Part(
            Role.DARK,
            curve([(back + 0.12, y), (0.48, y + heel * 0.5), (0.54, ground), (toe_x, ground)], closed=False),
            width=0.035,
        )
    )
    return Silhouette(tuple(parts), (back + shaft * 0.5, 0.57, 0.055), (back + shaft * 0.45, top + 0.09, 0.026))


def _boot_trim(variant: int, s: Sequence[float], back: float, shaft: float, top: float) -> list[Part]:
    """Elastic panel, laces or a cuff."""
    if variant == 0:
        x = back + shaft * 0.6
        return [
            Part(
                Role.SECONDARY,
                polygon([(x - 0.05, top + 0.02), (x + 0.05, top + 0.02), (x + 0.02, 0.6), (x - 0.02, 0.6)]),
            )
        ]
    if variant == 1:
        x, steps = back + shaft - 0.02, (0.0, 0.25, 0.5, 0.75)
        rows = [between(top + 0.1, 0.62, t) for t in steps]
        return [Part(Role.SECONDARY, polygon([(x - 0.07, y), (x + 0.01, y + 0.025)]), width=0.018) for y in rows]
    height = between(0.04, 0.09, s[5])
    return [Part(Role.SECONDARY, rounded(back + shaft / 2 - 0.005, top + height / 2, shaft / 2 + 0.018, height, power=7))]
