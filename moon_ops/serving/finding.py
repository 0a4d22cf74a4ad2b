"""What a search answers: the nearest items that are as the request wants them and still sold, with what is shown of each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.cards import Wanted
from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving.answers import shown
from moon_ops.serving.champion import Champion, Hit
from moon_ops.serving.service import Service

GROUPED_FROM = 4  # times k items are looked at for k products, and four times as many again while that is too few
MOST = 10_000  # items that are looked at: of one product with more variants fewer than k are found
SOLD = "active"  # the status of all that an index finds


@dataclass(frozen=True)
class Query:
    """Which answers are wanted: ``k`` after the first ``offset``, one of each product or any, of items that are as ``wanted``."""

    k: int
    offset: int = 0
    by_product: bool = False
    wanted: Wanted = field(default_factory=Wanted)
    status: str = ""

    @property
    def last(self) -> int:
        """How many answers there are with those that are passed over."""
        return self.offset + self.k


def found(service: Service, champion: Champion, vector: NDArray[np.float32], query: Query) -> dict[str, Any]:
    """The items nearest to the unit vector [D], as an answer lists them; ``degraded`` says what could not be told of them."""
    shop_ids, gone = service.shop_ids, service.follower.withdrawals.gone
    hits, known, fault = _told(service, champion, _hits(champion, vector, query, gone, shop_ids))
    while missing := [hit.item_id for hit in hits if not fault and champion.cards is not None and hit.item_id not in known]:
        gone = gone.union(missing)  # withdrawn, by a publication of which the cards are here before the index
        hits, known, fault = _told(service, champion, _hits(champion, vector, query, gone, shop_ids))
    service.watch.saw(champion.version, "search", [hit.score for hit in hits[:1]])
    lacking = "; ".join(filter(None, (fault, shop_ids.lacking() if query.by_product else "")))
    return _listed(hits, known, lacking, shop_ids)


def on_sale(service: Service, champion: Champion, hits: Sequence[Hit]) -> tuple[list[tuple[Hit, dict[str, Any]]], str]:
    """The hits that are on sale now, with what is shown of each; and why that could not be asked, empty if it was: then all of them."""
    gone = service.follower.withdrawals.gone
    left, known, fault = _told(service, champion, [hit for hit in hits if hit.item_id not in gone])
    return [(hit, known.get(hit.item_id, {})) for hit in left if fault or hit.item_id in known], fault


def listed(service: Service, told: Sequence[tuple[Hit, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The answer's rows, in the order given: ids of the item and of its product, and what is shown of it."""
    keys = [hit.item_id for hit, _ in told]
    names = zip(service.shop_ids.item(keys), service.shop_ids.product_of(keys), told, strict=True)
    return [{"item_id": item, "spu_id": product, **shown(row)} for item, product, (_, row) in names]


def _told(service: Service, champion: Champion, hits: list[Hit]) -> tuple[list[Hit], dict[int, dict[str, Any]], str]:
    """The hits, what is shown of them by id, and why that could not be asked. Only of a publication without cards is the lake asked."""
    items = [hit.item_id for hit in hits]
    if champion.cards is not None:
        return hits, champion.cards.get(items), ""
    return hits, *service.follower.stores.titles(service.settings.lake, items, dt.datetime.now(dt.UTC))


def _hits(champion: Champion, vector: NDArray[np.float32], query: Query, gone: Collection[int], shop_ids: ShopIds) -> list[Hit]:
    """The hits that are answered, best first; as many more are looked at as it takes."""
    if query.status not in ("", SOLD):
        return []
    looked = query.last * (GROUPED_FROM if query.by_product else 1)
    while True:
        hits = champion.search(vector, looked, query.wanted or None)
        left = [hit for hit in hits if hit.item_id not in gone]
        left = _one_each(left, shop_ids) if query.by_product else left
        if len(left) >= query.last or len(hits) < looked or looked >= MOST:
            return left[query.offset : query.last]
        looked = min(4 * looked, MOST)


def _one_each(hits: list[Hit], shop_ids: ShopIds) -> list[Hit]:
    """The first of each product."""
    first: dict[int, Hit] = {}
    for hit, product in zip(hits, shop_ids.products_of([hit.item_id for hit in hits]), strict=True):
        first.setdefault(product, hit)
    return list(first.values())


def _listed(hits: list[Hit], known: dict[int, dict[str, Any]], fault: str, shop_ids: ShopIds) -> dict[str, Any]:
    """The items found. ``withdrawn``, where no card tells: not on sale any more. ``fault``: why the lake was silent."""
    keys = [hit.item_id for hit in hits]
    items = [
        {"item_id": item, "spu_id": product, "score": hit.score, **shown(known.get(hit.item_id, {}))}
        for hit, item, product in zip(hits, shop_ids.item(keys), shop_ids.product_of(keys), strict=True)
    ]
    if fault:
        return {"degraded": fault, "items": items}
    return {"items": [item if key in known else {**item, "withdrawn": True} for key, item in zip(keys, items, strict=True)]}
