"""Import what a shop system exports: products and orders become a shop in the ingest layout, which ``moon ingest`` takes in.

What lies beside the export in the ingest layout already (queries, events, users) is taken along. A killed run is repeated from its start:
files get their names only when all of them are whole. The same import again replaces them, so a nightly export may be imported each night.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moon_ops.errors import InputError
from moon_ops.lake import meanings
from moon_ops.lake.reading import files
from moon_ops.shops.exports import along, google_merchant, magento, merchant_xml, orders, sheets, shopify, woocommerce
from moon_ops.shops.exports.export import ITEMS, Choices, Export
from moon_ops.shops.exports.sheets import Line, Sheet
from moon_ops.shops.importers import shop

SHOWN = 10  # reasons that are told
REFUSED = "_refused.csv"  # in the shop's directory: all of them; what begins with _ is no table


@dataclass(frozen=True)
class System:
    """How a shop system's exports are told (by the columns of a file), and what is made of them."""

    is_catalogue: Callable[[set[str]], bool]
    load: Callable[[list[Line], Export], None]
    used: set[str]
    xml: bool = False


KINDS = {
    "shopify": System(shopify.is_catalogue, shopify.load, shopify.USED),
    "woocommerce": System(woocommerce.is_catalogue, woocommerce.load, woocommerce.USED),
    "magento": System(magento.is_catalogue, magento.load, magento.USED),
    "google_merchant": System(google_merchant.is_catalogue, google_merchant.load, google_merchant.USED, xml=True),
}
PLAIN = Choices()
LAYOUT = {*ITEMS.names, "seller_id", "available_from"}  # columns of the ingest layout


@dataclass(frozen=True)
class CatalogueReport:
    """What an import made of an export.

    Every one of the ``rows`` of products is one of the ``items``, ``merged`` into one, or ``refused``. Every one of ``order_lines`` is a
    purchase that stands, none any more or not yet for the reason that ``orders_left_out`` counts, or refused. ``columns_left_out`` and
    ``order_columns_left_out`` count the cells of columns that were not used.
    """

    kind: str
    source: str
    out: str
    rows: int
    items: int
    merged: int
    refused: int
    products: int
    pictures: int
    picture_addresses: int
    pictures_missing: int
    order_lines: int = 0
    purchases: int = 0
    orders_left_out: dict[str, int] = field(default_factory=dict)
    orders_refused: int = 0
    log_refused: int = 0  # rows of a log of the shop's own
    columns_left_out: dict[str, int] = field(default_factory=dict)
    order_columns_left_out: dict[str, int] = field(default_factory=dict)
    taken_along: tuple[str, ...] = ()
    read: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_catalogue(kind: str, source: Path, out: Path, chosen: Choices = PLAIN) -> CatalogueReport:
    """Convert the export of the shop system ``kind`` (see :data:`KINDS`), a file or a directory, into a shop in directory ``out``.

    Raises :class:`~moon_ops.errors.InputError` for an unknown kind, a ``source`` without a file of products, a file that cannot be read to
    its end, an export of which no item can be made, and an ``out`` that holds anything but this very import.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    if kind not in KINDS:
        raise InputError(f"KIND = {kind!r} is no shop system", action=f"choose one of {', '.join(KINDS)}")
    if not source.exists():
        raise InputError(f"SOURCE = {source} is not there", action="name the file that was exported, or the directory that holds it")
    root = source if source.is_dir() else source.parent
    words = meanings.of(root)
    with shop.draft(source, out, f"Imported from {kind} in {source}.") as draft:
        beside = along.find(root) if source.is_dir() else {}
        found, rest = _sheets(KINDS[kind], source, root, out, words, {path for one in beside.values() for path in one.paths})
        if not found["products"]:
            said = "; ".join(rest) or "it is empty"
            raise InputError(f"SOURCE = {source} holds no products as {kind} exports them ({said}); nothing was imported", action=HOW)
        _keepable(chosen.keep, found["products"], KINDS[kind].used)
        export = Export(root, out, words, chosen, KINDS[kind].used)
        KINDS[kind].load([line for sheet in found["products"] for line in export.take(sheet)], export)
        table = export.table()
        if not table.num_rows:
            why = f"{export.refused[0][0]}: {export.refused[0][1]}" if export.refused else "they have no rows"
            raise InputError(f"{source}: of its products no item could be made ({why}); nothing was imported", action="export them again")
        bought = orders.Orders()
        for sheet in found["orders"]:
            orders.read(sheet, export.items, chosen.secret, bought)
        taken = along.bring(beside, export, words, draft.work)
        _write(draft, table, bought, export)
    return _report(kind, source, out, export, bought, found, (*rest, *export.notes), taken)


def secret(path: Path) -> bytes:
    """The key in a file; :class:`~moon_ops.errors.InputError` where there is none."""
    found = path.read_bytes().strip() if path.is_file() else b""
    if not found:
        raise InputError(f"{path} holds no key; nothing was imported", action="write a long random text into a file and name it")
    return found


HOW = "export them as docs/shops.md says; names of columns in another language go into moon.toml"


def _keepable(names: tuple[str, ...], products: list[Sheet], used: set[str]) -> None:
    """Refuse to keep a column that is not there, or that has a meaning already."""
    columns = {name: asread for sheet in products for name, asread in sheet.columns.items()}
    for name in names:
        if sheets.called(name) in used or sheets.called(name) in LAYOUT:
            raise InputError(f"--keep {name!r}: this column has a meaning already; nothing was imported", action="leave it out")
        if sheets.called(name) not in columns:
            rest = ", ".join(asread for other, asread in columns.items() if other not in used) or "none"
            raise InputError(f"--keep {name!r}: no such column; nothing was imported", action=f"name one of those not used: {rest}")


def _sheets(
    system: System, source: Path, root: Path, out: Path, words: meanings.Meanings, beside: set[Path]
) -> tuple[dict[str, list[Sheet]], list[str]]:
    """The files of products and of orders, and a sentence for each other file that may have been meant to be one."""
    found: dict[str, list[Sheet]] = {"products": [], "orders": []}
    said = []
    names = system.used | orders.NAMES
    for path in [source] if source.is_file() else files.under(source):
        label = path.relative_to(root).as_posix()
        if path in beside or path.is_relative_to(out) or label.lower() in files.OURS or label.lower().endswith(files.PICTURES):
            continue
        sheet = None
        if system.xml and ".xml" in path.suffixes:
            sheet = merchant_xml.read(path, root)
        elif files.kind(path) == "CSV":
            sheet = sheets.read(path, root, names, words)
        kind = _kind(system, sheet)
        if kind and sheet:
            found[kind].append(sheet)
        else:
            has = f" ({', '.join(list(sheet.columns.values())[:8])}, …)" if sheet else ""
            said.append(f"{label} was not used: it holds neither products nor orders{has}")
    return found, said


def _kind(system: System, sheet: Sheet | None) -> str:
    names = set(sheet.columns) if sheet else set()
    return "products" if system.is_catalogue(names) else "orders" if orders.is_orders(names) else ""


def _write(draft: shop.Draft, table: pa.Table, bought: orders.Orders, export: Export) -> None:
    """Give the files their names, items last: without them there is nothing to ingest."""
    rows = [{"place": place, "reason": why, "row": json.dumps(cells, ensure_ascii=False)} for place, why, cells in export.refused]
    rows += [{"place": place, "reason": why, "row": ""} for place, why in bought.refused]  # a customer's row is not kept
    rows += [{"place": place, "reason": why, "row": ""} for place, why in export.log_refused]
    kinds = pa.schema([(name, pa.string()) for name in ("place", "reason", "row")])
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows, kinds), draft.work / REFUSED)
    (draft.work / REFUSED).replace(draft.out / REFUSED)
    place = draft.out / along.ORDERS
    if bought.events:
        place.parent.mkdir(exist_ok=True)
        pq.write_table(bought.table(), draft.work / "orders.parquet")
        (draft.work / "orders.parquet").replace(place)
    else:
        place.unlink(missing_ok=True)  # of an import before
    pq.write_table(table, draft.work / "items.parquet")
    (draft.work / "items.parquet").replace(draft.out / "items.parquet")


def _report(
    kind: str,
    source: Path,
    out: Path,
    export: Export,
    bought: orders.Orders,
    found: dict[str, list[Sheet]],
    notes: tuple[str, ...],
    taken: tuple[str, ...],
) -> CatalogueReport:
    reasons = [f"{place}: {why}" for place, why, _ in export.refused] + [f"{place}: {why}" for place, why in bought.refused]
    reasons += [f"{place}: {why}" for place, why in export.log_refused]
    return CatalogueReport(
        kind=kind,
        source=str(source),
        out=str(out),
        rows=export.rows,
        items=len(export.items),
        merged=export.merged,
        refused=len(export.refused),
        products=len({item.spu_id for item in export.items}),
        pictures=len(export.files),
        picture_addresses=len(export.addresses),
        pictures_missing=len(export.missing),
        order_lines=bought.lines,
        purchases=bought.purchases,
        orders_left_out=dict(bought.left_out),
        orders_refused=len(bought.refused),
        log_refused=len(export.log_refused),
        columns_left_out=dict(export.left_out.most_common()),
        order_columns_left_out=dict(bought.columns_left_out.most_common()),
        taken_along=taken,
        read={sheet.label: f"{what}, {sheet.how}" for what, some in found.items() for sheet in some}
        | ({"items": ", ".join(export.said)} if export.said else {}),
        reasons=tuple(reasons[:SHOWN]),
        notes=notes,
    )
