"""``moon release``, ``promote``, ``rollback``, ``moves``, ``explain``, ``diff``, ``status``, ``verify``: what whoever is on call needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moon_ops.cli.terminal import now, say, settings_of, wish
from moon_ops.errors import InputError

if TYPE_CHECKING:
    from moon_ops.release.promotion import Moved
    from moon_ops.settings import Settings

app = typer.Typer()

Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]
Encoder = Annotated[int, typer.Option(help="Version of moon-encoder.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.", show_default=False)]
Mend = Annotated[bool, typer.Option("--mend", help="First embed and publish what the release lacks; takes minutes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@app.command()
def release(
    encoder: Encoder,
    home: Home = None,
    ctr: Annotated[int | None, typer.Option(help="Version of moon-ctr; none for a shop without click sequences.")] = None,
    align: Annotated[bool, typer.Option(help="The click model may be of another encoder: it reads through a map between them.")] = False,
    as_json: Json = False,
) -> None:
    """Measure an encoder and a click model against the champion, and register them as the next moon-release.

    Example: moon release --encoder 1 --ctr 1
    """
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release.evidence import summary
    from moon_ops.release.manifest import release as stage
    from moon_ops.release.windows import windows

    settings = settings_of(home)
    times = windows(settings.lake, seen_until=encoder_version(settings, encoder).trained_until)
    made = stage(settings, encoder, ctr, times, now=now(), aligned=align)
    verdicts, at = [asdict(v) for v in made.verdicts], made.report_at or "none: the log says why"
    if as_json:
        say({"release": made.version, "passed": made.passed, "evidence": verdicts, "report": at}, as_json)
    for line in [] if as_json else summary(made.version, verdicts, made.champion, made.report_at):
        typer.echo(line)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="Version of moon-release.")],
    home: Home = None,
    reason: Reason = "",
    force: Annotated[bool, typer.Option(help="In spite of a failed gate, or another champion; needs --reason, and is recorded.")] = False,
    mend: Mend = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a release the champion, if its evidence passed; the champion becomes `previous`. Who, when and why is recorded.

    Example: moon promote 2 --reason "recall up, AUC the same"
    """
    from moon_ops.release.promotion import promote as stage

    settings = settings_of(home, lake=False)
    if mend and not dry_run:
        _mend(settings, stage(settings, version, wish(reason), force=force, dry_run=True))
    _say(stage(settings, version, wish(reason), force=force, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@app.command()
def rollback(
    home: Home = None,
    to: Annotated[int | None, typer.Option(help="Go back to this release; default: the last good one before the champion.")] = None,
    again: Annotated[bool, typer.Option(help="Go back one more, although the last move was a rollback.")] = False,
    reason: Reason = "",
    mend: Mend = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Go back to the last release that was served before this one. Nothing is recomputed; what its vectors lack is said, and what mends it.

    Example: moon rollback --reason "searches find nothing"
    """
    from moon_ops.release.promotion import rollback as stage

    settings = settings_of(home, lake=False)
    if mend and not dry_run:
        _mend(settings, stage(settings, wish(reason), to=to, again=again, dry_run=True))
    _say(stage(settings, wish(reason), to=to, again=again, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@app.command()
def moves(home: Home = None, last: Annotated[int, typer.Option(help="How many.", min=1)] = 20, as_json: Json = False) -> None:
    """Which release was made champion when, by whom, and why; the newest last.

    Example: moon moves --last 5
    """
    from moon_ops.registry.moves import moves as read
    from moon_ops.registry.registry import Registry

    known = read(Registry(settings_of(home, looking=True)))[-last:]
    if as_json:
        say({"moves": [asdict(move) for move in known]}, as_json)
    for move in [] if as_json else known:
        typer.echo(move.told())
    if not known and not as_json:
        typer.echo("no release has been promoted here yet")


@app.command()
def status(home: Home = None, as_json: Json = False) -> None:
    """The champion, its parts and figures, what is served, and how much of the catalogue has vectors. Exit code 1 if the champion cannot be
    served.

    Example: moon status --json
    """
    from moon_ops.release.status import lines
    from moon_ops.release.status import status as stage

    found = stage(settings_of(home, looking=True), now=now())
    if as_json:
        say(found, as_json)
    for line in [] if as_json else lines(found):
        typer.echo(line)
    serving = found.get("serving", {"degraded": "", "release": None})
    if found.get("lake_away") or (serving["degraded"] and (found["champion"], serving["release"]) != (None, None)):
        raise typer.Exit(1)


@app.command()
def verify(
    home: Home = None,
    url: Annotated[str, typer.Option(help="Ask a running service, too, e.g. http://localhost:8321.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Check that what is served is what the alias says, and is whole: every file's sha256, vectors, index and table, the record of moves,
    and whatever a killed command has left. Changes nothing; exit code 1 if something is wrong.

    Example: moon verify --url http://localhost:8321
    """
    from moon_ops.errors import ServiceError
    from moon_ops.release.examination import examine, unreachable

    try:
        found = examine(settings_of(home, looking=True), now=now(), url=url)
    except ServiceError as fault:
        found = [unreachable(fault)]
    grave = sum(finding.grave for finding in found)
    if as_json:
        say({"whole": not grave, "findings": [asdict(finding) for finding in found]}, as_json)
    for finding in [] if as_json else found:
        typer.echo(f"{'BAD ' if finding.grave else 'note'} {finding.told()}")
    if not found and not as_json:
        typer.echo("ok   what is served is whole")
    if grave:
        raise typer.Exit(1)


@app.command()
def explain(version: Annotated[int, typer.Argument(help="Version of moon-release.")], home: Home = None) -> None:
    """Why a release passed its gates or did not: each gate beside the champion, as on its page in MLflow.

    Example: moon explain 2
    """
    from moon_ops.registry.registry import Registry, manifest_of
    from moon_ops.release.evidence import description

    typer.echo(description(version, manifest_of(Registry(settings_of(home, looking=True)), version)))


@app.command()
def diff(
    old: Annotated[int, typer.Argument(help="Version of moon-release.")],
    new: Annotated[int, typer.Argument(help="Version of moon-release to compare with it.")],
    home: Home = None,
    html: Annotated[Path | None, typer.Option(help="Write a page in pictures, too: searches that changed most, and more.")] = None,
    as_json: Json = False,
) -> None:
    """What differs between two releases: parts, figures side by side, verdicts.

    Example: moon diff 1 2 --html changes.html
    """
    from moon_ops.registry.registry import Registry, manifest_of
    from moon_ops.release.diff import diff as stage
    from moon_ops.release.diff import lines

    settings = settings_of(home, looking=True)
    registry = Registry(settings)
    before, after = (manifest_of(registry, version) for version in (old, new))
    found = stage(old, before, new, after)
    if html is not None:
        from moon_ops.release.report import beside

        if not html.absolute().parent.is_dir():
            raise InputError(f"--html {html}: its directory is not there; nothing was written", action="make it, or name another file")
        html.write_text(beside(settings.lake, old, before, new, after).html())
    if as_json:
        say(found, as_json)
    for line in [] if as_json else lines(found):
        typer.echo(line)


def _mend(settings: Settings, wanted: Moved) -> None:
    """Bring the vectors of the release that is to be served up to date, before it is."""
    if wanted.freshness is not None and wanted.freshness.warning():
        from moon_ops.release.stages import refresh

        refresh(settings, wanted.freshness.encoder, now=now())


def _say(moved: Moved, *, dry_run: bool, as_json: bool) -> None:
    told: dict[str, Any] = {"champion": moved.after, "before": moved.before}
    if moved.move is None:
        told["moved"] = "no: only shown" if dry_run else "no: it is champion already"
    if moved.unchecked:
        told["unchecked"] = moved.unchecked
        typer.echo(f"warning: release {moved.after}: {moved.unchecked}", err=True)
    if moved.freshness is not None:
        told["freshness"] = moved.freshness.told()
        if warning := moved.freshness.warning():
            typer.echo(f"warning: release {moved.after}: {warning}", err=True)
    say(told, as_json)
