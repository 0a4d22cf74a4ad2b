"""Every choice of the simulated shop, with the reason why the value is plausible.

Set once, before any model was trained on the shop, and not tuned afterwards. A change of any value makes another shop:
raise ``SHOP_VERSION`` with it. Weights of click and purchase are in logits unless a unit is given.
"""

from __future__ import annotations

from dataclasses import dataclass

SHOP_VERSION = 1
Range = tuple[float, float]


@dataclass(frozen=True)
class ShopSize:
    """How much a shop holds over its base length; more days add items and events at the same daily rate."""

    items: int
    users: int
    impressions: int
    days: int


@dataclass(frozen=True)
class CatalogueParameters:
    """Products, prices and sellers."""

    sku_shares: tuple[float, ...] = (0.3, 0.4, 0.3)  # 2, 3 or 4 colours a product: usual for fashion, mean 3
    new_share: float = 0.2  # of the base catalogue arrives late: a fast-moving marketplace
    new_from: float = 0.8  # ... in the last fifth of the time, where a model trained earlier has never seen it
    stock_days: int = 90  # the first stock was listed over the quarter before the start
    popularity_tail: float = 1.1  # Pareto exponent near 1: Zipf-like sales by rank, as retail reports
    popularity_limit: float = 60.0  # no product sells more than this many times the weakest
    sku_popularity_sigma: float = 0.4  # one colour often sells half again as much as its sibling
    spu_quality_sigma: float = 0.6  # logits: reviews and reputation that no picture or title shows
    sku_quality_sigma: float = 0.2  # the same for one colour: photo luck, stock of sizes
    price_sigma: float = 0.45  # log price within a category: cheap to premium is about a factor of 4
    sku_price_sigma: float = 0.04  # colours of one product cost nearly the same
    items_per_seller: int = 25  # a marketplace of many small sellers
    seller_tail: float = 0.9  # Zipf exponent of sellers' range: the largest own a visible share
    large_seller_share: float = 0.05  # of sellers, by rank
    medium_seller_share: float = 0.25
    two_tone_share: float = 0.35  # of SKUs take any second colour; the others a neutral (black, white, beige, grey)
    plain_share: float = 0.36  # plain is the commonest pattern in every category
    pattern_by_sku_share: float = 0.2  # of products sell one SKU in another pattern
    motif_share: float = 0.6  # of products carry a motif; without one, proportions must tell them apart
    pattern_repeats: Range = (5.0, 11.0)  # across the picture: from bold to fine
    motif_scale: Range = (0.75, 1.2)  # of the silhouette's usual size
    colour_jitter: float = 11.0  # standard deviation in 0–255: "red" of two makers differs visibly
    view_shares: tuple[float, ...] = (0.28, 0.44, 0.28)  # 1, 2 or 3 pictures: mean 2


@dataclass(frozen=True)
class TextParameters:
    """How messy sellers and searchers write (probabilities)."""

    title_brand: float = 0.6  # unbranded listings are common outside large sellers
    title_colour: float = 0.68  # a third of listings leave colour to the picture
    title_material: float = 0.5
    title_occasion: float = 0.35
    title_audience: float = 0.4
    title_pattern: float = 0.25  # of patterned items say so
    title_size: float = 0.15
    title_junk: float = 0.5  # half of all titles carry at least one sales phrase
    title_typo: float = 0.05
    title_shuffled: float = 0.3  # words in no order that grammar knows
    attribute_missing: float = 0.3  # each structured field is left empty this often
    query_category: float = 0.92  # nearly every query names the thing
    query_synonym: float = 0.35
    query_colour: float = 0.55
    query_brand: float = 0.2
    query_material: float = 0.25
    query_occasion: float = 0.2
    query_pattern: float = 0.2
    query_motif: float = 0.2  # "mug with star": asked for in words though no title says it
    query_typo: float = 0.07


@dataclass(frozen=True)
class StudioParameters:
    """Light and camera of a shop's own pictures. Lengths are pixels of the 192-pixel canvas unless said otherwise."""

    quality: int = 88  # JPEG: a shop's usual setting
    contrast_luminance: float = 150.0  # above it, prints are dark
    motif_rim: float = 1.22  # a badge is sewn on with a margin
    relief_radius: float = 8.0
    relief_shift: int = 4
    relief_light: float = 0.55  # soft boxes: form is visible, colours stay true
    relief_edge: float = 0.3
    seam_darkness: float = 0.3
    shadow: float = 0.3  # opacity
    shadow_blur: float = 4.0  # pixels of the finished picture
    shadow_offset: tuple[int, int] = (3, 4)  # likewise
    front_scale: Range = (1.04, 1.1)  # a studio fills the frame the same way every time
    front_shift: float = 0.01
    turned_width: Range = (0.78, 0.94)  # about 30 to 45 degrees
    turned_height: float = 1.06
    turned_depth: Range = (0.04, 0.09)
    detail_scale: Range = (1.4, 1.8)
    detail_shift: float = 0.08


@dataclass(frozen=True)
class PhotographParameters:
    """A telephone at home: everything the studio controls varies here. Fractions are of the picture's side."""

    rotation_degrees: float = 25.0  # a hand-held phone over a thing on a table
    scale: Range = (0.8, 1.3)  # from too far away to cropped
    aspect: Range = (0.9, 1.1)
    perspective: float = 0.07  # each corner moves by up to this
    shift: float = 0.1
    surfaces: tuple[tuple[int, int, int], ...] = (  # muted colours of rooms, so that the product is the subject
        *((201, 180, 150), (150, 116, 84), (222, 216, 205), (168, 172, 176)),
        *((122, 128, 134), (186, 196, 186), (96, 84, 78)),
    )
    surface_jitter: float = 12.0
    clutter: tuple[int, int] = (2, 7)  # other things in view
    background_blur: Range = (0.3, 2.2)  # pixels
    occluded: float = 0.35  # a hand, a cable or a corner of something in front
    occluder_radius: Range = (0.07, 0.14)
    white_balance: float = 0.13  # gain of red and blue: lamp light to daylight
    exposure: Range = (0.76, 1.25)
    contrast: Range = (0.8, 1.15)
    vignette: Range = (0.0, 0.4)  # darkening at the corners
    slope_light: float = 0.25  # a window on one side
    blur: Range = (0.0, 0.9)  # pixels: focus and shake
    noise: Range = (2.0, 9.0)  # standard deviation in 0–255: indoor light
    quality: tuple[int, int] = (45, 82)  # JPEG after a messenger has had it


@dataclass(frozen=True)
class UserParameters:
    """Who shops. Tastes are persistent and mostly about what is seen."""

    categories: float = 0.22  # Dirichlet concentration: most visits go to about three categories
    activity_sigma: float = 1.0  # lognormal: a tenth of users makes about two fifths of the visits
    price_level_sigma: float = 0.35  # log price relative to the category's usual
    price_sensitivity_sigma: float = 0.5  # lognormal around 1
    liked_share: float = 0.25  # of the values of each visual facet are liked ...
    disliked_share: float = 0.25  # ... and as many disliked; the rest leave the user cold
    taste_shape: float = 4.0  # gamma shape of a like's strength: mean 1, standard deviation 0.5
    colour_taste: float = 1.0  # weight of each facet in a user's total taste: colour is noticed first
    second_colour_taste: float = 0.35
    pattern_taste: float = 0.8
    texture_taste: float = 0.4
    motif_taste: float = 0.7


@dataclass(frozen=True)
class SessionParameters:
    """Visits, queries and the ranker that the shop has today."""

    hours: tuple[int, ...] = (4, 2, 1, 1, 1, 2, 4, 6, 8, 9, 10, 11, 13, 11, 10, 10, 11, 12, 14, 17, 19, 19, 14, 6)
    # ^ visits by hour from midnight: quiet nights, a lunch break, a long evening on the sofa
    longest: float = 1800.0  # seconds; none begins later than this before midnight, so that days are independent
    weekday_factors: tuple[float, ...] = (0.95, 0.92, 0.94, 0.97, 1.02, 1.12, 1.08)  # Monday first: weekends are busier
    list_lengths: tuple[int, int] = (6, 14)  # results looked through: a mean of ten, two screens of a telephone
    image_share: float = 0.4  # a shop that is known for visual search
    photographed_sibling: float = 0.15  # the photograph shows another colour of what is wanted
    considered: int = 24  # products a user has in mind, drawn by popularity, before taste picks the one to look for
    intent_taste: float = 1.1  # how sharply it picks
    intent_missing: float = 0.14  # retrieval loses the wanted item this often; with the list's end, a fifth miss it
    popular_candidates: int = 40  # retrieved by sales ...
    other_candidates: int = 40  # ... by anything else, so that every item is seen now and then ...
    foreign_candidates: int = 8  # ... and from a neighbouring category
    image_relevance: float = 4.0  # ranker's weight of the true match, against noise of 1
    text_relevance: float = 2.5  # words say less than a picture
    popularity_weight: float = 0.25  # per unit of log popularity
    new_days: float = 7.0  # an item counts as new for a week ...
    new_boost: float = 0.5  # ... and gets a mild lift


@dataclass(frozen=True)
class MatchParameters:
    """How well an item answers an intent, in 0 to 1: itself 1, its siblings less, others by what they share."""

    sibling: float = 0.6  # the right product in another colour
    same_category: float = 0.45  # reached by a stranger that shares every facet below
    colour: float = 0.35  # the five weights sum to 1; what strikes the eye first weighs most
    pattern: float = 0.2
    motif: float = 0.2
    variant: float = 0.15
    texture: float = 0.1


@dataclass(frozen=True)
class ClickParameters:
    """Examination × attraction, then cart and purchase."""

    examination_decay: float = 0.55  # examination = position ** -decay: the tenth result is seen by about a quarter
    base: float = -2.85
    match: float = 2.5  # the wanted item at first position is clicked by rather more than half
    taste: float = 0.85  # per unit of taste, which spreads by about 1.2: the strongest signal after the match
    price: float = 0.5  # per unit of log distance from the user's level
    seller: tuple[float, ...] = (0.2, 0.0, -0.2)  # large, medium, small: trust
    first_result: float = 0.4  # seconds until the list appears
    each_result: float = 1.5  # seconds of scrolling for each
    click_delay: Range = (0.8, 6.0)  # seconds: the least, and the mean on top of it (exponential, cut at six means)
    cart_delay: Range = (4.0, 40.0)  # read the page
    purchase_delay: Range = (15.0, 150.0)  # address and payment
    cart_base: float = -4.1
    cart_match: float = 5.2  # the thing that was looked for goes into the cart; a pleasant stranger rarely
    cart_image: float = 1.7  # who takes a photograph wants that very thing
    cart_quality: float = 0.4
    purchase_base: float = -0.7  # a third to a half of carts are left, as shops report; fewer on a sure find
    purchase_match: float = 0.9
    purchase_image: float = 0.9


CATALOGUE = CatalogueParameters()
TEXT = TextParameters()
STUDIO = StudioParameters()
PHOTOGRAPH = PhotographParameters()
USERS = UserParameters()
SESSIONS = SessionParameters()
MATCH = MatchParameters()
CLICKS = ClickParameters()
