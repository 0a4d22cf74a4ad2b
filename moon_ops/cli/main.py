"""``moon``: parse, call the library function of the same name, turn one family of errors into one line and exit code 1."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from moon_ops.cli import capacity, intake, keys, releases, studies
from moon_ops.cli import vectors as production
from moon_ops.cli.cross_fitted import cross_fitted
from moon_ops.cli.exchange_rate import exchange_rate
from moon_ops.cli.extras import not_installed
from moon_ops.cli.faults import told
from moon_ops.cli.order import InOrder
from moon_ops.cli.terminal import Engine, Set, SetClick, Without, about, fail, moment, now, say, settings_of, stop_at_once, with_engine
from moon_ops.errors import InputError, MoonError, counted
from moon_ops.startup import start
from moon_ops.telemetry import traces

HELP = """Operate multimodal item embeddings: from a catalogue to a served release of encoder, vectors, index and click model.

First: moon demo. Each command has an example: moon COMMAND --help."""
app = typer.Typer(cls=InOrder, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP, rich_markup_mode=None)

app.callback(help=HELP, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True, no_args_is_help=True)(about)
studies.app.command()(cross_fitted)
app.add_typer(studies.app, name="study")
app.add_typer(keys.app, name="keys")
app.command("exchange-rate")(exchange_rate)
app.add_typer(intake.app)  # without a name: its commands are ours
app.add_typer(releases.app)
app.add_typer(production.app)
app.add_typer(capacity.app)

STARTED = time.perf_counter()  # what a command imports counts
NEEDLESS = {  # command → packages that its libraries would import only because they are installed, for seconds each
    **dict.fromkeys(("status", "promote", "rollback"), ("pandas",)),  # Arrow, at its first array
    "serve": ("torch", "transformers"),  # Feast
}
Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Time = Annotated[str | None, typer.Option(help="A time, ISO 8601, e.g. 2026-02-15 or 2026-02-15T12:00:00Z.", show_default=False)]
Minutes = Annotated[
    float | None, typer.Option(help="End within so many minutes on this machine: fewer training steps, if need be.", show_default=False)
]
Start = Annotated[
    str | None, typer.Option(help="Judge on queries from this time on; default: the end of its training.", show_default=False)
]
Encoder = Annotated[int, typer.Option(help="Version of moon-encoder.")]


@app.command()
def demo(
    home: Home = None,
    data: Annotated[Path | None, typer.Option(help="A shop's directory in the ingest layout; default: a simulated shop.")] = None,
    size: Annotated[str, typer.Option(help="Size of the simulated shop: tiny, demo, busy or large.")] = "demo",
    days: Annotated[
        int | None, typer.Option(help="Days that the simulated shop has run; more days are more data of the same shop.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training; another one makes another release of the same shop.")] = 0,
    encoder: Annotated[str, typer.Option(help="Encoder recipe in models/.")] = "moon-tiny",
    trained_until: Time = None,
    minutes: Minutes = None,
    set_: Set = None,
) -> None:
    """The whole loop: from a raw catalogue to a promoted, served release, and a report.

    Example: moon demo --size tiny
    """
    from moon_ops.cli.demo import Choices, run

    until, changes = moment(trained_until), tuple(set_ or ())
    chosen = Choices(data, size, days, seed, encoder, trained_until=until, minutes=minutes, changes=changes)
    run(settings_of(home), chosen, now=now())


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Directory to write the shop to.")],
    size: Annotated[str, typer.Option(help="tiny, demo, busy or large.")] = "demo",
    seed: Seed = 0,
    days: Annotated[int | None, typer.Option(help="Days that the shop has run.")] = None,
    photographer: Annotated[
        str, typer.Option(help="Who takes the users' photographs: known does what training practises, unknown what it has never seen.")
    ] = "known",
) -> None:
    """Draw a simulated shop in the ingest layout: products, pictures, users, searches, clicks.

    Example: moon simulate shop --size tiny
    """
    from moon_ops.shops.simulate import simulate as stage

    say(stage(out, size=size, seed=seed, days=days, photographer=photographer))


@app.command("import")
def import_(
    kind: Annotated[
        str,
        typer.Argument(help="shopify, woocommerce, magento, google_merchant; or taobao_mm, microlens, amazon2023, hm, movielens, grocery."),
    ],
    source: Annotated[Path, typer.Argument(help="The exported file, or the directory that holds the files.")],
    out: Annotated[Path, typer.Argument(help="Directory to write the shop to.")],
    users: Annotated[int | None, typer.Option(help="Of a click log a sample of so many users; default: all.", show_default=False)] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Of an export also this column, as the shop's own; may be given again.", show_default=False)
    ] = None,
    media: Annotated[str, typer.Option(help="Address in front of pictures that an export names by paths (Magento).")] = "",
    store: Annotated[str, typer.Option(help="Store view whose texts count (Magento).")] = "",
    user_key: Annotated[
        Path | None, typer.Option(help="File with a secret by which customers' e-mail addresses are hashed.", show_default=False)
    ] = None,
    allow_quarantine: Annotated[bool, typer.Option(help="Of an export: exit with 0 even if rows were refused.")] = False,
    as_json: Json = False,
) -> None:
    """Convert what a shop system exports, or a public click log, into a shop in the ingest layout, for `moon ingest`. See docs/shops.md.

    Example: moon import shopify products_export.csv shop
    """
    from moon_ops.shops import catalogues, imports

    exported = kind in catalogues.KINDS
    for option, given in (("--users", users), ("--keep", keep), ("--media", media), ("--store", store), ("--user-key", user_key)):
        if given and exported == (option == "--users"):
            raise InputError(f"{option} means nothing for {kind}; nothing was imported", action="leave it out")
    if not exported:
        say(imports.import_clicks(kind, source, out, users=users), as_json)
        return
    chosen = catalogues.Choices(tuple(keep or ()), media, store, catalogues.secret(user_key) if user_key else b"", now())
    report = catalogues.import_catalogue(kind, source, out, chosen)
    say(report, as_json)
    if (refused := report.refused + report.orders_refused + report.log_refused) and not allow_quarantine:
        raise InputError(
            f"{counted(refused, 'row was', 'rows were')} refused; the first: {report.reasons[0]}; all others are in {out}",
            action=f"{out / catalogues.REFUSED} has all of them: mend the export, or pass --allow-quarantine",
        )


@app.command()
def train(
    home: Home = None,
    recipe: Annotated[str, typer.Option(help="Encoder recipe in models/.")] = "moon-tiny",
    trained_until: Time = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps instead of the recipe's.")] = None,
    minutes: Minutes = None,
    engine: Engine = None,
    set_: Set = None,
) -> None:
    """Train an encoder on what users did before a time; prints the checkpoint for `moon export`. Killed and called again, it goes on.

    Example: moon train --trained-until 2026-02-15
    """
    from moon_ops.encoder.budget import Budget
    from moon_ops.release import stages

    settings = with_engine(settings_of(home), engine)
    budget = None if minutes is None else Budget(minutes, spent=time.perf_counter() - STARTED)
    until = _windows(settings, trained_until).trained_until
    trained = stages.train(settings, recipe, trained_until=until, seed=seed, steps=steps, budget=budget, changes=set_ or ())
    if trained.run_id:  # of several processes one speaks
        say(trained)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="The directory that `moon train` printed.")],
    variant: Annotated[list[str] | None, typer.Option(help="Make int8 (CPU) or fp16 (GPU) graphs, too; MOON_VARIANT uses them.")] = None,
    home: Home = None,
) -> None:
    """Export a checkpoint to ONNX with a parity certificate and register it as the next moon-encoder; the same again is the same version.

    Example: moon export .moon/checkpoints/RUN --variant int8
    """
    from moon_ops.release import stages

    made = stages.export(settings_of(home), checkpoint, variant or [])
    say({"encoder": made.encoder, **({"note": "registered before: nothing is new, and its vectors are kept"} if made.before else {})})


@app.command()
def evaluate(
    encoder: Encoder,
    home: Home = None,
    start: Start = None,
    end: Time = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="Instead: tell category, brand and attributes, and find text by picture.")] = False,
    as_json: Json = False,
) -> None:
    """Image- and text-search recall of an encoder, on queries after its training, against the whole catalogue: as it is, as pictures
    alone, as texts alone, and by prefix of the vectors. With --tasks: what the vectors tell of items beside search, and chance beside it.

    Example: moon evaluate --encoder 1 --json
    """
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release import evaluation
    from moon_ops.release.windows import windows

    settings = settings_of(home)
    until = encoder_version(settings, encoder).trained_until
    times = windows(settings.lake, end=moment(end), trained_until=moment(start), seen_until=until)
    if tasks:
        told = evaluation.evaluate_tasks(settings, encoder, times)
        say({**told.metrics, "left_out": told.left_out}, as_json)
        return
    metrics, prefixes = evaluation.evaluate_parts(settings, encoder, times)
    say({**metrics, "prefixes": [asdict(p) for p in prefixes]}, as_json)


@app.command()
def ctr(
    encoder: Encoder,
    home: Home = None,
    recipe: Annotated[str, typer.Option(help="Click recipe in models/.")] = "ctr-cube",
    engine: Engine = None,
    set_: SetClick = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a click model on an encoder's vectors, register it as the next moon-ctr, and evaluate it on later impressions.

    Example: moon ctr --encoder 1
    """
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release import clicks
    from moon_ops.release.windows import windows

    settings = with_engine(settings_of(home), engine)
    times = windows(settings.lake, seen_until=encoder_version(settings, encoder).trained_until)
    directory, version = clicks.train_ctr(settings, encoder, recipe, times, seed=seed, changes=set_ or ())
    if version is None:  # of several processes one registers, judges and speaks
        return
    events = json.loads((directory / "ctr.json").read_text())["events"]
    say({"ctr": version, "events": events, **clicks.evaluate_ctr(settings, encoder, directory, times)}, as_json)


@app.command()
def serve(
    home: Home = None,
    release: Annotated[
        int | None, typer.Option(help="Serve this release, to look at it; not the champion. Moves nothing.", show_default=False)
    ] = None,
) -> None:
    """Serve the champion over HTTP, with a visual search page at /; or one release, to look at before it is promoted.

    Example: moon serve --release 7   (beside the service proper: with MOON_PORT=8322)
    """
    from moon_ops.serving.opening import serve as stage

    settings = settings_of(home, lake=False)
    address, many = f"http://{settings.host}:{settings.port}", f"   {settings.processes} processes" if settings.processes > 1 else ""
    alone = [] if release is None else [f"release {release} alone, whatever is champion; nothing is promoted or written down"]
    said = "\n".join([*alone, f"visual search: {address}/   requests: {address}/docs{many}"])
    stage(settings, release=release, enter=partial(enter, "serve"), opens=lambda: typer.echo(said))


@app.command()
def doctor(
    home: Home = None,
    repair: Annotated[bool, typer.Option("--repair", help="First mend what killed commands and a moved home have left.")] = False,
) -> None:
    """Check the environment and every store: versions, permissions, disk, clocks, lake, MLflow, Feast, and what `moon verify` checks; one
    line each, and what to do about those that are bad.

    Example: moon doctor --repair
    """
    from moon_ops.cli import doctor

    settings, bad = settings_of(home, looking=not repair, lake=False), 0
    for done in doctor.repair(settings, now()) if repair else ():
        typer.echo(f"done {done}")
    for name, good, detail in doctor.examine(settings, now()):
        typer.echo(f"{'ok  ' if good else 'BAD '} {name:<18} {detail}")
        bad += not good
    if bad:
        raise typer.Exit(1)


def _windows(settings: Any, trained_until: str | None) -> Any:
    from moon_ops.release.windows import windows

    return windows(settings.lake, trained_until=moment(trained_until))


def enter(command: str) -> None:
    """What a process does before a command's libraries are imported."""
    start()
    Without.start(NEEDLESS.get(command, ()))
    traces.start("moon-serve" if command == "serve" else "moon")


def main() -> None:
    """Entry point: a :class:`MoonError` becomes one line on stderr and exit code 1, and so does a package that only an extra brings, a full
    disk, or a locked database; anything else keeps its traceback.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    stop_at_once(command)
    enter(command)
    try:
        app()
    except MoonError as fault:
        fail(fault)
    except ImportError as missing:
        if (absent := not_installed(missing, f"moon {command}")) is None:
            raise
        fail(absent)
    except Exception as fault:
        if (known := told(fault, f"moon {command}".strip())) is None:
            raise
        fail(known)
