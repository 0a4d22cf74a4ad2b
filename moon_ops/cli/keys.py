"""``moon keys``: make, list and revoke the keys with which a service is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moon_ops.cli.terminal import now, say, settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keys of the service: make, list and revoke them.")
Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[list[str], typer.Option(help="search, score, write or admin; may be given again.")],
    rate: Annotated[float, typer.Option(help="Requests a second that a service lets through, all its processes together.")] = 100.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it is shown this once, and kept only as a hash.

    Example: moon keys create shop-frontend --scope search --scope score
    """
    from moon_ops.serving import keys

    place = keys.place_of(settings_of(home, lake=False))
    first = not keys.read(place)
    made, token = keys.create(place, name, scope, per_second=rate, now=now())
    if first:
        typer.echo("the first key: from now on each request to the service needs one (but for MOON_OPEN=yes)", err=True)
    if as_json:
        say({"id": made.id, "scopes": list(made.scopes), "key": token}, as_json)
    else:
        typer.echo(token)


@app.command("list")
def list_(home: Home = None, as_json: Json = False) -> None:
    """The keys: id, scopes, name, when they were made, and whether they still open something.

    Example: moon keys list
    """
    from moon_ops.serving import keys

    known = keys.read(keys.place_of(settings_of(home, looking=True)))
    if as_json:
        say({"keys": [key.shown() for key in known]}, as_json)
        return
    for line in [key.told() for key in known] or ["there are no keys: `moon keys create --help` says how one is made"]:
        typer.echo(line)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `moon keys list` shows it.")], home: Home = None) -> None:
    """Let a key open nothing any more, in every service within a moment.

    Example: moon keys revoke 1a2b3c4d
    """
    from moon_ops.serving import keys

    gone = keys.revoke(keys.place_of(settings_of(home, lake=False)), key_id, now=now())
    typer.echo(gone.told())
