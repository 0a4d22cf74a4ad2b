"""What an ingest did, and what one would do, in lines for people; each begins with the word under which the documents explain it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moon_ops.errors import by_place, counted

if TYPE_CHECKING:
    from moon_ops.lake.checking import Check
    from moon_ops.lake.ingest import IngestReport

ROWS = ("row", "rows")
PICTURES = ("picture", "pictures")
NEW = (("item", "items"), PICTURES, ("query", "queries"), ("event", "events"), ("user", "users"))


def ingested(report: IngestReport) -> Iterator[str]:
    """What came in, what was there already and what was left out, of each what there is of it."""
    yield from _read(report.read)
    counts = (report.items, report.images, report.queries, report.events, report.users)
    yield f"new: {', '.join(counted(count, *names) for count, names in zip(counts, NEW, strict=True))}"
    yield f"changed: {counted(report.updated, 'item', 'items')}"
    yield f"known: {counted(report.known, *ROWS)}, in the lake already"
    if report.merged:
        yield f"merged: {counted(report.merged, *ROWS)}, each into the item that it continues"
    if report.withdrawn:
        yield f"withdrawn: {counted(report.withdrawn, 'item', 'items')} that the feed does not have"
    if report.refused:
        yield f"refused: {by_place(report.refused, *ROWS)}"
    if report.unread:
        yield f"unread: {by_place(report.unread, *PICTURES)}"
    if report.erased:
        yield f"erased: {by_place(report.erased, *ROWS)}, not taken in, for what they name was erased"
    if report.warning:
        yield f"warning: {report.warning}"
    yield from (f"notes: {note}" for note in report.notes)


def checked(found: Check) -> Iterator[str]:
    """What would become of a directory, and what is missing for which stage."""
    yield from _read(found.read)
    for name, counts in found.tables.items():
        fates = ", ".join(f"{count:,} {fate}" for fate, count in counts.items() if fate != "rows")
        yield f"{name}: {counted(counts['rows'], *ROWS)}: {fates}"
    yield f"pictures: {', '.join(f'{count:,} {fate}' for fate, count in found.pictures.items())}"
    yield f"pairs: {counted(found.pairs, 'pair', 'different pairs')} of query and item to learn from"
    if found.behaviour:
        yield f"behaviour: {', '.join(f'{name} {count:,}' for name, count in found.behaviour.items())}"
    if found.refused:
        yield f"refused: {by_place(found.refused, *ROWS)}"
    if found.unread_rows:
        yield f"unread: {by_place(found.unread_rows, *PICTURES)}"
    yield from (f"reasons: {reason}" for reason in found.reasons)
    yield from (f"notes: {note}" for note in found.notes)
    yield from (f"missing for {stage}: {what}" for stage, what in found.lacking.items())


def _read(files: Mapping[str, str]) -> Iterator[str]:
    return (f"read: {name} as {how}" for name, how in files.items())
