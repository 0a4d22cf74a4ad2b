"""How the figures of a release are called, e.g. ``image_search/recall@10:new_items`` and ``ctr/auc_id_only:long_tail``: made here alone."""

from __future__ import annotations

IMAGE_SEARCH, TEXT_SEARCH, WITHIN_PRODUCT = "image_search", "text_search", "within_product"
INDEX = "index"  # what it finds of what an exact scan finds
PARITY = "encoder/parity_cosine"  # least cosine between eager and exported vectors
LEAKED = f"{IMAGE_SEARCH}/leaked"  # photographs with a near-identical twin in training, left out
ANSWERS, NEIGHBOURS = "answers", "neighbours"  # what another encoder changes
LOSS = "training/loss"
PARAMETERS, TRAINED = "training/parameters", "training/trained_parameters"  # of the encoder, and of what its training changes
VALIDATED = "validation/recall@10"  # the best of an encoder's training on purchases held out of it
CHANCE = "_chance"  # what vectors that know nothing reach at a task of items
KS = (1, 5, 10)  # of recall@K
ID_ONLY, ORACLE, GAIN = "_id_only", "_oracle", "_gain"  # models beside the one judged, and the difference to the first


def recall(search: str, k: int = 10, where: str = "") -> str:
    """Recall@k of a kind of search, in a slice or for a part of the catalogue."""
    return f"{search}/recall@{k}{_end(where)}"


def queries(search: str, where: str = "") -> str:
    """How many queries a recall is the mean of."""
    return f"{search}/queries{_end(where)}"


def ctr(name: str = "auc", where: str = "", model: str = "") -> str:
    """A click model's figure in a slice; ``model`` is one of those beside it, e.g. :data:`ID_ONLY`."""
    return f"ctr/{name}{model}{_end(where)}"


def recall_loss(variant: str) -> str:
    """What a variant of an encoder's graphs loses of recall, by its certificate."""
    return f"parity/{variant}_recall_loss"


def serving(name: str) -> str:
    """What a release costs on the serving path: milliseconds, or bytes."""
    return f"serving/{name}"


def catalogue(name: str) -> str:
    """How much of the catalogue a release has vectors for, and how old they are."""
    return f"catalogue/{name}"


def alignment(name: str, where: str = "") -> str:
    """A figure of the map from a release's encoder to the champion's."""
    return f"alignment/{name}{_end(where)}"


def space(name: str) -> str:
    """A figure of the catalogue's vectors among themselves."""
    return f"space/{name}"


def drift(name: str) -> str:
    """How the judged time differs from the time of training."""
    return f"drift/{name}"


def leakage(part: str) -> str:
    """Days between a part's training and the time that judges it; below 0 it knows answers."""
    return f"leakage/{part}_days"


def against_champion(name: str, end: str = "") -> str:
    """The difference of a figure to the champion's on the same data; ``end``: ``_low`` and ``_high`` of its interval."""
    return f"{name}_against_champion{end}"


def overlap(what: str, k: int = 10) -> str:
    """Which share of the first k of a kind, e.g. of :data:`ANSWERS`, two releases have in common."""
    return f"{what}/overlap@{k}"


def task(name: str, figure: str, end: str = "") -> str:
    """What vectors tell of items, e.g. ``tasks/category_by_pictures/accuracy_probe``; ``end``: ``_low`` and ``_high`` of its interval, or
    :data:`CHANCE`.
    """
    return f"tasks/{name}/{figure}{end}"


def untrained(name: str) -> str:
    """The same figure of random weights."""
    return f"{name}_untrained"


def is_whole_recall(name: str) -> bool:
    """Whether it is a recall over all queries, not over a slice of them."""
    return "recall@" in name and ":" not in name


def stored(name: str) -> str:
    """As MLflow takes it, which knows no ``@`` and no ``+``: ``recall@10`` → ``recall_at_10``, ``+0.5`` → ``0.5``."""
    return name.replace("@", "_at_").replace("+", "")


def _end(where: str) -> str:
    return f":{where}" if where else ""
