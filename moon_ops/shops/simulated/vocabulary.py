"""The words and colours of the shop: categories, colour families, brands, materials and what sellers shout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A leaf of the category tree. ``weight`` is its cards in every 24 dealt; ``price`` the usual price."""

    path: str
    silhouette: str
    nouns: tuple[str, ...]
    weight: int
    price: float
    materials: tuple[str, ...]
    sizes: tuple[str, ...]


_CLOTHES = ("XS", "S", "M", "L", "XL")
_SHOES = ("37", "38", "39", "40", "41", "42", "43")
_ONE = ("one size",)

CATEGORIES = (
    Category(
        "Fashion > Dresses",
        "dress",
        ("dress", "frock", "gown"),
        3,
        49.0,
        ("cotton", "linen", "viscose", "silk"),
        _CLOTHES,
    ),
    Category("Fashion > T-Shirts", "t-shirt", ("t-shirt", "tee", "shirt"), 3, 19.0, ("cotton", "jersey", "bamboo"), _CLOTHES),
    Category(
        "Fashion > Trousers",
        "trousers",
        ("trousers", "pants", "slacks"),
        2,
        45.0,
        ("cotton", "linen", "wool"),
        _CLOTHES,
    ),
    Category("Fashion > Hats", "hat", ("hat", "headwear", "cap"), 2, 22.0, ("cotton", "wool", "felt"), _ONE),
    Category("Shoes > Sneakers", "sneaker", ("sneakers", "trainers"), 3, 69.0, ("canvas", "leather", "mesh"), _SHOES),
    Category("Shoes > Boots", "boot", ("boots", "ankle boots"), 2, 95.0, ("leather", "suede", "rubber"), _SHOES),
    Category("Bags > Handbags", "handbag", ("handbag", "purse", "bag"), 2, 59.0, ("leather", "canvas", "cork"), _ONE),
    Category("Bags > Backpacks", "backpack", ("backpack", "rucksack"), 1, 52.0, ("nylon", "canvas", "leather"), _ONE),
    Category("Accessories > Watches", "watch", ("watch", "wristwatch"), 1, 89.0, ("steel", "leather", "silicone"), _ONE),
    Category("Home > Mugs", "mug", ("mug", "cup"), 2, 12.0, ("stoneware", "porcelain", "enamel"), ("250 ml", "350 ml")),
    Category("Home > Lamps", "lamp", ("lamp", "table lamp"), 2, 55.0, ("brass", "ceramic", "oak"), ("40 cm", "60 cm")),
    Category("Home > Chairs", "chair", ("chair", "seat"), 1, 120.0, ("oak", "beech", "steel"), ("45 cm", "50 cm")),
)


@dataclass(frozen=True)
class Colour:
    """A family of colours around ``rgb`` (0–255), with the words that people use for it."""

    words: tuple[str, ...]
    rgb: tuple[int, int, int]


COLOURS = (
    Colour(("red", "crimson", "scarlet"), (196, 50, 54)),
    Colour(("orange", "tangerine"), (228, 124, 56)),
    Colour(("yellow", "mustard"), (238, 194, 74)),
    Colour(("green", "forest green"), (72, 142, 90)),
    Colour(("blue", "azure"), (62, 112, 190)),
    Colour(("purple", "violet", "lilac"), (124, 84, 160)),
    Colour(("pink", "rose"), (230, 138, 166)),
    Colour(("brown", "chocolate"), (124, 84, 58)),
    Colour(("beige", "sand", "camel"), (214, 192, 158)),
    Colour(("white", "ivory"), (243, 240, 233)),
    Colour(("grey", "silver"), (134, 138, 144)),
    Colour(("black", "charcoal"), (44, 43, 48)),
)
NEUTRALS = (8, 9, 10, 11)  # beige, white, grey, black: what most second colours are

# Invented names; the brand also decides the mark that the product carries.
BRANDS = (
    *("Tolvane", "Quillo", "Marrowby", "Sundrel", "Oskadi", "Pellaro", "Wickenfold", "Zarivo"),
    *("Brumelle", "Fenwhistle", "Kolmari", "Duskwell", "Ibarrel", "Lunquist", "Nerovane", "Yarrowin"),
    *("Cobblefig", "Havrelle", "Jantaro", "Ostrelle", "Rimbolt", "Ulvaro", "Velkin", "Thistlemoor"),
)
OCCASIONS = ("summer", "winter", "office", "party", "travel", "everyday", "festival")
AUDIENCES = ("women", "men", "unisex", "kids")
TIERS = ("large", "medium", "small")

PATTERN_WORDS = {
    "stripes": ("striped", "stripes"),
    "dots": ("dotted", "polka dot"),
    "checks": ("checked", "plaid"),
    "gradient": ("ombre", "gradient"),
    "zigzag": ("zigzag", "chevron"),
    "diamonds": ("argyle", "diamond pattern"),
    "speckle": ("speckled", "camo"),
}
JUNK = (
    *("HOT", "free shipping", "2026 new", "BEST SELLER", "top quality", "!!!", "SALE", "gift idea", "limited"),
    *("new arrival", "trending", "fast delivery", "100% satisfaction", "wow", "original", "must have"),
)
DESCRIPTIONS = (
    "Made of {material}, sized {size}. A good choice for {occasion}.",
    "{brand} quality: {material} that lasts. Suits {audience}.",
    "Our {noun} for {occasion}. {material}, easy to clean. Size {size}.",
    "For {audience}. Pictures are taken in daylight, colours may differ a little. Material: {material}.",
    "You will love it!! {occasion} or {other_occasion}, it fits. Ships in 24 h.",
)
