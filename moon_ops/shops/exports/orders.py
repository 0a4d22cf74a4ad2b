"""Orders, as Shopify, WooCommerce and Magento and their extensions export them: each line of an order that was paid is a purchase.

A line that was cancelled or returned since is its purchase, and the event that takes it back: an import before may have brought the
purchase. Each event has the order's number and an id of its own, the same in each export, so that it is known when it comes again.

Columns are known by the names that these write. Who has bought is hidden: an e-mail address or a name becomes the hash of it, and nothing
else of the customer is read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from moon_ops.lake.reading import markup, times
from moon_ops.shops.exports.export import Item
from moon_ops.shops.exports.sheets import Line, Sheet

SKU = ("lineitem_sku", "item_sku", "product_sku", "sku")
TITLE = ("lineitem_name", "item_name", "product_name")
IDS = ("variation_id", "product_id")
TIME = ("created_at", "order_date", "date_created", "purchase_date", "date", "paid_at")
ORDER = ("order_number", "order_no", "order_no.", "increment_id", "order_id", "order_#", "order", "id")
BUYER = ("customer_id", "customer_user", "user_id", "email", "customer_email", "billing_email", "email_(billing)", "customer")
STATUS = ("financial_status", "order_status", "status", "payment_status")
CANCELLED, REFUNDED = "cancelled_at", ("refunded_at", "refund_date", "date_refunded", "order_refund_date")
QUANTITY = ("lineitem_quantity", "quantity_(_refund)", "quantity", "qty", "qty_ordered", "item_quantity")
PACKED = re.compile(r"line_item_\d+")  # a line of the order in one cell: name:Bowl|product_id:7|sku:B-7|quantity:1
NO_PURCHASE = {
    **dict.fromkeys(("cancelled", "canceled", "failed", "trash", "fraud", "expired", "holded_fraud"), "cancelled"),
    **dict.fromkeys(("refunded", "voided", "returned", "closed"), "returned"),
    **dict.fromkeys(("pending", "pending_payment", "checkout_draft", "draft", "unpaid", "on_hold"), "not paid"),
}
NAMES = {"name", *SKU, *TITLE, *IDS, *TIME, *ORDER, *BUYER, *STATUS, *QUANTITY, *REFUNDED, CANCELLED}
UNDOING = {"cancelled": "cancel", "returned": "return"}  # why a line is no purchase → the event that takes it back
EVENTS = pa.schema([(name, pa.string()) for name in ("timestamp", "user_id", "item_id", "event", "order_id", "event_id")])
DIGITS = 32  # hexadecimal digits of a hash


@dataclass
class Orders:
    """The events, how many lines are ``purchases`` that stand, and what became of the others: why each is none, and how many there were.

    ``times`` counts how often each order has named an item so far.
    """

    lines: int = 0
    purchases: int = 0
    events: list[dict[str, str | None]] = field(default_factory=list)
    times: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)  # place and reason
    columns_left_out: Counter[str] = field(default_factory=Counter)  # column → its cells that hold something

    def table(self) -> pa.Table:
        """The purchases, and what takes some of them back, as events; all cells are texts."""
        return pa.Table.from_pylist(self.events, EVENTS)

    def add(self, number: str, event: Mapping[str, str | None], undone: tuple[str, str] | None = None, only_undone: bool = False) -> None:
        """A line of the order ``number`` as events. ``undone``: kind and time of what took its purchase back; ``only_undone``: the line is
        no purchase itself, but takes one of the order back.

        A line without an order's number can be told from no other one, so that nothing could say which purchase is taken back.
        """
        if not number:
            self.events += [{**event, "event": "purchase", "order_id": None, "event_id": None}] if undone is None else []
            return
        item = event["item_id"] or ""
        self.times[number, item] += 1
        told = [] if only_undone else [("purchase", event["timestamp"])]
        for kind, time in [*told, *([undone] if undone else [])]:
            called = f"order {number}/{item}/{self.times[number, item]}/{kind}"
            self.events.append({**event, "timestamp": time, "event": kind, "order_id": number, "event_id": called})


def is_orders(names: set[str]) -> bool:
    """Whether a file with these columns holds orders with their lines."""
    lines = bool(names & {*SKU, *TITLE, *IDS}) or any(PACKED.fullmatch(name) for name in names)
    return lines and bool(names & {*TIME}) and bool(names & {*ORDER, "name"})


def hidden(buyer: str, secret: bytes) -> str:
    """Who has bought, as a user's id: a customer's number as it is, anything else as the first digits of its HMAC-SHA256 with ``secret``,
    or of its plain SHA-256 where there is none. Letter case does not count.
    """
    if not buyer or re.fullmatch(r"\d+", buyer):
        return "" if buyer == "0" else buyer  # 0: a guest
    content = buyer.strip().lower().encode()
    digest = hmac.new(secret, content, hashlib.sha256) if secret else hashlib.sha256(content)
    return digest.hexdigest()[:DIGITS]


def read(sheet: Sheet, items: Iterable[Item], secret: bytes, orders: Orders) -> None:
    """Add what a file of orders says to ``orders``."""
    known = _Names(items)
    shopify = any(name.startswith("lineitem_") for name in sheet.columns)
    order = ("name",) if shopify else tuple(name for name in ORDER if name in sheet.columns)[:1]
    firsts: dict[str, Line] = {}
    found: list[tuple[Line, Line, dict[str, str]]] = []
    for line in sheet.lines:
        orders.columns_left_out.update(sheet.columns[n] for n in line.cells if n not in NAMES and not PACKED.fullmatch(n))
        first = firsts.setdefault(line.get(*order) or line.place, line)
        found += [(line, first, bought) for bought in _bought(line)]
    orders.lines += len(found) + len(sheet.refused)
    orders.refused += [(line.place, reason) for line, reason in sheet.refused]
    bought_at, undone_at = (_stamps([_said(line, first, names) for line, first, _ in found]) for names in (TIME, (CANCELLED, *REFUNDED)))
    for (line, first, bought), stamp, undone in zip(found, bought_at, undone_at, strict=True):
        item, why = known.item(bought), _no_purchase(line, first, bought)
        event = {"timestamp": stamp, "user_id": hidden(_buyer(line, first), secret) or None, "item_id": item}
        if why:
            orders.left_out[why] += 1
            if why in UNDOING and item and stamp:
                orders.add(line.get(*order), event, (UNDOING[why], undone or stamp), only_undone=bought["quantity"].startswith("-"))
        elif not stamp:
            orders.refused.append((line.place, f"{_said(line, first, TIME)!r} is not a time ({times.FORMS})"))
        elif not item:
            called = bought["sku"] or bought["name"] or bought["id"]
            orders.refused.append((line.place, f"{called!r} is no item of the catalogue" if called else "names no item"))
        else:
            orders.purchases += 1
            orders.add(line.get(*order), event)


def _stamps(cells: list[str]) -> list[str | None]:
    """The times as ISO 8601; None for what is none."""
    found = times.parsed(pa.array([cell or None for cell in cells], pa.string())).to_pylist()
    return [stamp.isoformat() if stamp else None for stamp in found]


def _said(line: Line, first: Line, names: tuple[str, ...]) -> str:
    """A cell of the order: exports write it in all rows of the order, or in the first alone."""
    return line.get(*names) or first.get(*names)


def _buyer(line: Line, first: Line) -> str:
    found = [cell for name in BUYER for one in (line, first) if (cell := one.get(name))]
    return next((cell for cell in found if cell != "0"), "")


def _no_purchase(line: Line, first: Line, bought: dict[str, str]) -> str:
    """Why a line of an order is no purchase; empty if it is one."""
    if line.get(CANCELLED) or first.get(CANCELLED):
        return "cancelled"
    for name in STATUS:
        word = re.sub(r"[\s-]+", "_", _said(line, first, (name,)).lower()).removeprefix("wc_")
        if word in NO_PURCHASE:
            return NO_PURCHASE[word]
    return "returned" if re.fullmatch(r"0+([.,]0*)?|-.*", bought["quantity"]) else ""


def _bought(line: Line) -> Iterator[dict[str, str]]:
    """The lines of an order that a row holds: one, or one in each packed cell."""
    packed = [cell for name, cell in line.cells.items() if PACKED.fullmatch(name)]
    for cell in packed:
        said = {name.strip().lower(): value.strip() for name, _, value in (part.partition(":") for part in cell.split("|"))}
        ids = next((said[name] for name in IDS if said.get(name, "0") != "0"), "")
        yield {"sku": said.get("sku", ""), "name": said.get("name", ""), "id": ids, "quantity": said.get("quantity", "")}
    if not packed:
        ids = next((cell for name in IDS if (cell := line.get(name)) and cell != "0"), "")
        yield {"sku": line.get(*SKU).removeprefix("'"), "name": line.get(*TITLE), "id": ids, "quantity": line.get(*QUANTITY)}


class _Names:
    """The items by what an order may call them; a name that two of them have says nothing."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.ids: dict[str, str] = {}
        self.skus: dict[str, str] = {}
        self.names: dict[str, str] = {}
        twice: set[tuple[str, str]] = set()
        for item in items:
            self.ids[item.item_id] = item.item_id
            for kind, names in (("sku", [item.sku]), ("name", [_plain(name) for name in item.names])):
                known = self.skus if kind == "sku" else self.names
                for name in names:
                    if name and known.setdefault(name, item.item_id) != item.item_id:
                        twice.add((kind, name))
        for kind, name in twice:
            del (self.skus if kind == "sku" else self.names)[name]

    def item(self, bought: dict[str, str]) -> str:
        """The id of the item that a line of an order names: by its SKU, its id or its name; empty if there is no such item."""
        by_id = self.names.get(bought["id"]) or self.ids.get(bought["id"])
        return self.skus.get(bought["sku"]) or self.ids.get(bought["sku"]) or by_id or self.names.get(_plain(bought["name"]), "")


def _plain(name: str) -> str:
    return " ".join(markup.text(name).split()).lower()
