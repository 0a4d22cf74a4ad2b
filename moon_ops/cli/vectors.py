"""``moon embed``, ``publish``, ``features``, ``maintain``, ``erase``, ``restore``: the vectors' production, publication and upkeep."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from moon_ops.cli.terminal import Engine, moment, now, say, settings_of, with_engine
from moon_ops.errors import InputError

app = typer.Typer(no_args_is_help=True)

Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Encoder = Annotated[int, typer.Option(help="Version of moon-encoder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


@app.command()
def embed(
    encoder: Encoder,
    home: Home = None,
    engine: Engine = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, and how long it should take.")] = False,
    as_json: Json = False,
) -> None:
    """Embed every item and query that has no vector yet under an encoder.

    Example: moon embed --encoder 1 --dry-run
    """
    from moon_ops.embeddings import produce
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release import stages

    settings = with_engine(settings_of(home), engine)
    if dry_run:
        encoder_version(settings, encoder)  # an encoder that is not there has no work
        say(produce.plan(settings.lake, encoder), as_json)
        return
    for report in stages.embed(settings, encoder, now=now()):
        say(report, as_json)


@app.command()
def bring(
    file: Annotated[Path, typer.Argument(help="A Parquet file with item_id and embedding.")],
    trained_until: Annotated[str, typer.Option(help="Until when whatever made the vectors has seen behaviour, ISO 8601.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take vectors that others made as an encoder without a model: for click models on them, e.g. of a public click log.

    Example: moon bring shop/vectors.parquet --trained-until 2025-01-01
    """
    from moon_ops.publication import brought

    until = moment(trained_until)
    assert until is not None, "the option is required"
    say(brought.bring(settings_of(home), file, trained_until=until, now=now()), as_json)


@app.command()
def publish(
    encoder: Encoder,
    home: Home = None,
    engine: Engine = None,
    full: Annotated[bool, typer.Option("--full", help="Hand over everything again, not only what has changed.")] = False,
    as_json: Json = False,
) -> None:
    """Hand the vectors over: Feast views, online store, representation tables, index.

    Example: moon publish --encoder 1
    """
    from moon_ops.publication import publication

    say(publication.publish(with_engine(settings_of(home), engine), encoder, now=now(), full=full), as_json)


@app.command()
def features(
    out: Annotated[Path, typer.Argument(help="A directory that is not there yet.")],
    encoder: Encoder,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy the features that click models read to Parquet, for a Feast offline store of your own (BigQuery, Snowflake, Spark, files). See
    docs/embeddings.md.

    Example: moon features warehouse --encoder 1
    """
    from moon_ops.publication import warehouse

    say(warehouse.export(settings_of(home), encoder, out), as_json)


@app.command()
def maintain(
    home: Home = None,
    keep_days: Annotated[float, typer.Option(min=0, max=36500, help="Younger versions of tables stay; tagged ones always do.")] = 7,
    as_json: Json = False,
) -> None:
    """Merge the lake's small files and remove versions that nobody can ask for any more; those of releases stay. Of a lake in an object
    store old checkpoints go, too.

    Example: moon maintain --keep-days 7
    """
    from moon_ops.publication import maintenance
    from moon_ops.release import checkpoints

    settings, keep, at = settings_of(home), dt.timedelta(days=keep_days), now()
    for kept in maintenance.maintain(settings, keep=keep, now=at):
        say(kept, as_json)
    checkpoints.tidy(settings, keep, at)


@app.command()
def erase(
    item_id: Annotated[str | None, typer.Argument(help="The item, by the id that the shop gave it.", show_default=False)] = None,
    user: Annotated[str | None, typer.Option(help="A user instead, with all behaviour and the queries that nobody else asked.")] = None,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: what is erased cannot be brought back.")] = False,
) -> None:
    """Forget an item everywhere, its own pictures and the behaviour that names it included, or a user; prints a receipt of every place. An
    ingest refuses it from then on, until `moon restore` allows it again.

    Example: moon erase SKU/1234 --yes
    """
    from moon_ops.publication import erasure

    settings = settings_of(home)
    kind, given = _one_of(item_id, user)
    who = erasure.target(settings.lake, kind, given)
    if not yes:
        typer.confirm(f"Erase {kind} {given} from lake, vectors, online store, tables and index for ever?", abort=True)
    say(erasure.erase(settings, who, now=now()))


@app.command()
def restore(
    item_id: Annotated[str | None, typer.Argument(help="The item, by the id that the shop gave it.", show_default=False)] = None,
    user: Annotated[str | None, typer.Option(help="A user instead.")] = None,
    query: Annotated[str | None, typer.Option(help="A query instead, which went with a user.")] = None,
    home: Home = None,
) -> None:
    """Let an item, a user or a query that was erased come back with the next file that names it. It brings back nothing by itself.

    Example: moon restore SKU/1234
    """
    from moon_ops.publication import erasure

    kind, given = _one_of(item_id, user, query)
    if not erasure.restore(settings_of(home), kind, given):
        raise InputError(f"{kind.upper()}_ID = {given} was not erased", action="check the id")
    say({"allowed": kind, "id": given})


def _one_of(item: str | None, user: str | None, query: str | None = None) -> tuple[str, str]:
    """The kind and the id of the one that is named."""
    given = [(kind, value) for kind, value in (("item", item), ("user", user), ("query", query)) if value is not None]
    if len(given) != 1:
        problem = f"{len(given) or 'none'} of an ITEM_ID, --user and whatever else the command knows {'are' if given else 'is'} given"
        raise InputError(problem, action="name one: see the command's --help")
    return given[0]
