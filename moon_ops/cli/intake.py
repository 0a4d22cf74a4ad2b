"""``moon ingest``, ``check``, ``describe``, ``quarantine``: a shop's files on their way into the lake, and what did not get there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moon_ops.cli import sentences
from moon_ops.cli.terminal import now, say, settings_of, tell
from moon_ops.errors import InputError, counted, set_aside

app = typer.Typer(no_args_is_help=True)

Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]
Directory = Annotated[Path, typer.Argument(help="A shop's directory: items, queries, events, pictures.")]
Event = Annotated[
    list[str] | None,
    typer.Option("--event", help="What the shop's name of an event means, e.g. wishlist=cart; may be given again.", show_default=False),
]
Status = Annotated[
    list[str] | None,
    typer.Option("--status", help="What the shop's word for a state means, e.g. paused=deleted; may be given again.", show_default=False),
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the files, e.g. windows-1252; default: it is recognised.", show_default=False)
]


@app.command()
def ingest(
    directory: Directory,
    home: Home = None,
    allow_quarantine: Annotated[bool, typer.Option(help="Exit with 0 even if rows were set aside.")] = False,
    event: Event = None,
    status: Status = None,
    encoding: Encoding = None,
    full_feed: Annotated[bool, typer.Option("--full-feed", help="The items file is the whole catalogue: withdraw what it lacks.")] = False,
    withdraw_at_most: Annotated[float, typer.Option(help="The share of items in sale that a full feed may withdraw, 0 to 1.")] = 0.2,
    as_json: Json = False,
) -> None:
    """Take a shop's directory into the lake. Bad rows are set aside in the quarantine table (`moon quarantine`); the good ones are kept.

    Example: moon ingest shop
    """
    from moon_ops.lake import meanings
    from moon_ops.lake.ingest import Feed
    from moon_ops.lake.ingest import ingest as stage

    feed, settings = Feed(full_feed, withdraw_at_most), settings_of(home)
    words = meanings.of(directory, events=event or (), status=status or (), encoding=encoding)
    report = stage(directory, settings.lake, now=now(), workers=settings.workers, words=words, feed=feed)
    tell(report, sentences.ingested(report), as_json)
    if (report.refused or report.unread) and not allow_quarantine:
        raise InputError(
            f"{set_aside(report.refused, report.unread)}; the first: {report.first_refusal}; all other rows are in the lake",
            action="`moon quarantine` lists them; mend them and ingest again, or pass --allow-quarantine",
        )


@app.command()
def check(directory: Directory, event: Event = None, status: Status = None, encoding: Encoding = None, as_json: Json = False) -> None:
    """Say what `moon ingest` would do with a directory, without a lake: how its files are read, rows by fate, pictures, what is missing for
    which stage. Ends with 1 if rows would be set aside.

    Example: moon check shop
    """
    from moon_ops.lake import meanings
    from moon_ops.lake.checking import check as stage
    from moon_ops.recipes.reading import caps

    words = meanings.of(directory, events=event or (), status=status or (), encoding=encoding)
    found = stage(directory, now=now(), words=words, caps=caps(settings_of(None, looking=True).models))
    tell(found, sentences.checked(found), as_json)
    if found.refused or found.unread:
        raise typer.Exit(1)


@app.command()
def quarantine(
    home: Home = None,
    table: Annotated[str | None, typer.Option(help="Only of this table: items, queries, events or users.", show_default=False)] = None,
    to: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows to this file, to be mended and ingested again.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also rows that have come in mended since.")] = False,
    as_json: Json = False,
) -> None:
    """What was set aside and has not come in since: how many rows of which table, column and reason, each with an example; all rows with
    --json or --csv.

    Example: moon quarantine --table items --csv items.csv
    """
    from moon_ops.lake import quarantine as stage

    rows = stage.refused(settings_of(home, looking=True).lake, table, mended=everything)
    if to is not None:
        for path in stage.write_csv(rows, to):
            typer.echo(f"wrote {path}")
    if as_json:
        say(stage.report(rows), as_json)
        return
    for line in stage.counts(rows):
        typer.echo(f"{line['rows']:>7,} {line['table']} {line['column'] or '(row)'}: {line['reason']}   e.g. {line['example']}")
    typer.echo(f"{counted(len(rows), 'row', 'rows')} in quarantine")


@app.command()
def describe(
    directory: Annotated[
        Path | None, typer.Argument(help="A shop's directory, before it is ingested; default: what was ingested.", show_default=False)
    ] = None,
    home: Home = None,
    days: Annotated[int, typer.Option(help="An item is cold if nothing but impressions happened to it in so many last days.")] = 30,
    event: Event = None,
    status: Status = None,
    encoding: Encoding = None,
    as_json: Json = False,
) -> None:
    """What is in a shop, ingested or still a directory: items, pictures, pairs, searches, days, what is missing, and which recipe fits it
    and why. Nothing is written.

    Example: moon describe path/to/shop --json
    """
    from moon_ops.lake import description, meanings
    from moon_ops.recipes.reading import caps

    if directory is None:
        if event or status or encoding:
            problem = "--event, --status and --encoding say how files are read, and what was ingested has been read"
            raise InputError(problem, action="name a directory, too")
        settings = settings_of(home, looking=True)
        say(description.describe(settings.lake, days=days, caps=caps(settings.models)), as_json)
        return
    if home is not None:
        raise InputError(f"{directory} and --home {home} are two shops", action="name one of them")
    words = meanings.of(directory, events=event or (), status=status or (), encoding=encoding)
    settings = settings_of(None, looking=True)
    how: dict[str, Any] = {"workers": settings.workers, "caps": caps(settings.models)}
    say(description.describe_directory(directory, now=now(), words=words, days=days, **how), as_json)
