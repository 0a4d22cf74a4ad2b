"""``moon study``: small grids of recipes, with tables and figures of what each part is worth."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moon_ops.cli.terminal import Set, SetClick, moment, settings_of
from moon_ops.errors import InputError

if TYPE_CHECKING:
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.settings import Settings
    from moon_ops.studies.arms import Arm
    from moon_ops.studies.click_arms import ClickArm
    from moon_ops.studies.clicks import Judged
    from moon_ops.studies.encoder import Outcome

app = typer.Typer(no_args_is_help=True, help="Small grids of recipes, with tables and figures of what each part is worth.")

Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Recipe = Annotated[str, typer.Option(help="Encoder recipe in models/ that is the full one.")]
Encoder = Annotated[int, typer.Option(help="Version of moon-encoder.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas; three for a claim.")]
Only = Annotated[str, typer.Option(help="Only arms whose name holds one of these words, with commas.", show_default=False)]
TrainedUntil = Annotated[str | None, typer.Option(help="A time, ISO 8601; default: three quarters of the events.", show_default=False)]


@app.command()
def ablation(
    home: Home = None,
    recipe: Recipe = "moon-study",
    seeds: Seeds = "0,1,2",
    only: Only = "",
    trained_until: TrainedUntil = None,
    set_: Set = None,
) -> None:
    """Train without each stage and each part, and tell what it costs; the table goes to MOON_HOME/studies and to MLflow.

    Example: moon study ablation --recipe moon-study --seeds 0,1,2
    """
    from moon_ops.studies import encoder as study
    from moon_ops.studies.arms import FULL
    from moon_ops.studies.figures import ablation_figure

    ran = _run("ablation", home, recipe, seeds, only, trained_until, set_ or ())
    written, drawn = ran.place.with_suffix(".md"), ran.place.with_suffix(".png")
    written.write_text(study.table(ran.outcomes, ran.arms, FULL))
    ablation_figure(ran.outcomes, ran.arms, FULL, drawn)
    finish(ran.settings, "ablation", [written, drawn])


@app.command()
def scaling(
    home: Home = None,
    recipe: Recipe = "moon-study",
    seeds: Seeds = "0,1,2",
    only: Only = "",
    trained_until: TrainedUntil = None,
    set_: Set = None,
) -> None:
    """Train with more and fewer tokens, and with more and fewer negatives, and draw both curves.

    Example: moon study scaling --recipe moon-study --seeds 0,1,2
    """
    from moon_ops.studies import encoder as study
    from moon_ops.studies.figures import scaling_figure

    ran = _run("scaling", home, recipe, seeds, only, trained_until, set_ or ())
    written, drawn = ran.place.with_suffix(".md"), ran.place.with_suffix(".png")
    written.write_text(study.table(ran.outcomes, ran.arms, "tokens x 1"))
    scaling_figure(ran.outcomes, drawn)
    finish(ran.settings, "scaling", [written, drawn])


@app.command()
def circle_loss(
    home: Home = None,
    recipe: Recipe = "moon-study",
    seeds: Seeds = "0,1,2",
    only: Only = "",
    trained_until: TrainedUntil = None,
    set_: Set = None,
) -> None:
    """Train stage 2b with circle loss by margin and scale, both ways and one way, beside InfoNCE.

    Example: moon study circle-loss --recipe moon-study --seeds 0,1,2
    """
    from moon_ops.studies import encoder as study
    from moon_ops.studies.arms import INFO_NCE

    ran = _run("circle-loss", home, recipe, seeds, only, trained_until, set_ or ())
    written = ran.place.with_suffix(".md")
    written.write_text(study.table(ran.outcomes, ran.arms, INFO_NCE))
    finish(ran.settings, "circle-loss", [written])


@app.command()
def learning_rates(
    home: Home = None,
    recipes: Annotated[str, typer.Option(help="Encoder recipes in models/, with commas.")] = "moon-study",
    multipliers: Annotated[str, typer.Option(help="Of all rates of a recipe, with commas; 1 is always among them.")] = "0.3,1,3",
    seeds: Seeds = "0,1,2",
    trained_until: TrainedUntil = None,
    set_: Set = None,
) -> None:
    """Try the same multipliers of the learning rates of every recipe, choose by held-out purchases, and tell what each then finds later.

    Example: moon study learning-rates --recipes moon-study,moon-tiny
    """
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe
    from moon_ops.release.windows import windows
    from moon_ops.studies import encoder as study
    from moon_ops.studies import rates

    settings, numbers, tried = settings_of(home), study.whole_seeds(seeds), rates.grid(multipliers)
    names = list(dict.fromkeys(name.strip() for name in recipes.split(",") if name.strip()))
    if not names:
        raise InputError(f"recipes = {recipes!r} names none", action="give e.g. moon-study,moon-tiny")
    made = {name: rates.validated(recipe(EncoderRecipe, name, settings.models, changes=set_ or ())) for name in names}
    grids = {name: rates.arms(full, tried) for name, full in made.items()}  # all of them before the first is trained
    times = windows(settings.lake, trained_until=moment(trained_until))
    places = {name: study.place_of(settings, "learning-rates", full, times) for name, full in made.items()}
    outcomes = {
        name: study.run(settings, "learning-rates", full, grids[name], numbers, times, place=places[name]) for name, full in made.items()
    }
    chosen = [rates.choose(name, outcomes[name], tried, numbers) for name in names]
    key = hashlib.sha256(json.dumps([[place.stem for place in places.values()], tried, numbers]).encode()).hexdigest()[:8]
    written = settings.home / "studies" / f"learning-rates-{key}.md"
    written.write_text(rates.table(chosen, outcomes, numbers, rates.judged(outcomes)))
    finish(settings, "learning-rates", [written])


@app.command()
def click_models(
    encoder: Encoder,
    home: Home = None,
    recipes: Annotated[str, typer.Option(help="Click recipes in models/, with commas; default: all of ours.", show_default=False)] = "",
    seeds: Seeds = "0,1,2",
    later_rows_only: Annotated[
        bool,
        typer.Option(
            "--later-rows-only", help="Also train each only on rows from after the encoder's training, and on as many days before."
        ),
    ] = False,
    set_: SetClick = None,
) -> None:
    """Train every click model on an encoder's vectors, and tell what each is worth beside the ID-only one, overall and by slice.

    Example: moon study click-models --encoder 1
    """
    from moon_ops.studies import click_arms

    names = [name.strip() for name in recipes.split(",") if name.strip()]
    arms = [replace(arm, changes=tuple(set_ or ())) for arm in click_arms.models(names or click_arms.MODELS)]
    arms = click_arms.later(arms) if later_rows_only else arms
    _click_study(settings_of(home), encoder, "click-models", arms, seeds, click_arms.BASELINE)


@app.command()
def cube_parts(encoder: Encoder, home: Home = None, only: Only = "", seeds: Seeds = "0,1,2", set_: SetClick = None) -> None:
    """Train DIN with what it lacks beside CUBE, and CUBE without each of its parts; differences are to the strongest that reads the query.

    Example: moon study cube-parts --encoder 1
    """
    from moon_ops.studies import click_arms
    from moon_ops.studies import clicks as click_study

    words = [word.strip() for word in only.split(",") if word.strip()]
    arms = [replace(arm, changes=tuple(set_ or ())) for arm in click_arms.cube_parts()]
    arms = [arm for arm in arms if arm.name in click_arms.AWARE or not words or any(word in arm.name for word in words)]
    rivals = [arm.name for arm in arms if arm.recipe in click_arms.AWARE]
    _click_study(settings_of(home), encoder, "cube-parts", arms, seeds, lambda judged: click_study.strongest(judged, rivals))


@app.command()
def daily(
    encoder: Encoder,
    home: Home = None,
    recipes: Annotated[str, typer.Option(help="Click recipes in models/, with commas.")] = "ctr-din,ctr-din-cos-query,ctr-cube",
    every: Annotated[int, typer.Option(help="Train anew after so many days.", min=1)] = 1,
    days: Annotated[
        int | None, typer.Option(help="Judge the last days only; default: the click models' window.", show_default=False, min=1)
    ] = None,
    seeds: Seeds = "0,1,2",
    set_: SetClick = None,
) -> None:
    """Train each model once, once and refitted on the newest rows, and anew for every judged day: all on the same rows.

    Example: moon study daily --encoder 1 --days 7
    """
    from moon_ops.studies import click_arms

    names = [name.strip() for name in recipes.split(",") if name.strip()]
    arms = [replace(arm, changes=tuple(set_ or ())) for arm in click_arms.days(names, every)]
    if not arms:
        raise InputError(f"recipes = {recipes!r} names none", action="give e.g. ctr-din,ctr-cube")
    _click_study(settings_of(home), encoder, "daily", arms, seeds, arms[0].name, days=days)


@app.command()
def behaviour_length(
    encoder: Encoder,
    home: Home = None,
    recipe: Annotated[str, typer.Option(help="Click recipe in models/.")] = "ctr-cube",
    lengths: Annotated[str, typer.Option(help="Behaviours read, with commas; of more than 50 the 50 most similar.")] = "1,2,5,10,20,50,100",
    seeds: Seeds = "0,1,2",
    set_: SetClick = None,
) -> None:
    """Train a click model on longer and longer behaviour sequences, and draw the curve.

    Example: moon study behaviour-length --encoder 1
    """
    from moon_ops.studies import click_arms
    from moon_ops.studies.figures import length_figure

    settings = settings_of(home)
    parts = [part.strip() for part in lengths.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"lengths = {lengths!r} must be whole numbers with commas", action="give e.g. 1,5,20,100")
    arms = [replace(arm, changes=tuple(set_ or ())) for arm in click_arms.lengths(recipe, [int(part) for part in parts])]
    judged, place = _click_study(settings, encoder, "behaviour-length", arms, seeds, arms[0].name, finished=False)
    drawn = place.with_suffix(".png")
    length_figure({arm.change["behaviors"]: judged.metric(arm.name, "auc") for arm in arms}, drawn)
    finish(settings, "behaviour-length", [place, drawn])


def _click_study(
    settings: Settings,
    encoder: int,
    kind: str,
    arms: list[ClickArm],
    seeds: str,
    reference: str | Callable[[Judged], str],
    *,
    finished: bool = True,
    days: int | None = None,
) -> tuple[Judged, Path]:
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release.windows import windows
    from moon_ops.studies import clicks as click_study
    from moon_ops.studies import encoder as study

    times = windows(settings.lake, seen_until=encoder_version(settings, encoder).trained_until)
    if days is not None:
        times = replace(times, ctr_until=times.end - dt.timedelta(days=days))
    oracle = next(iter(sorted(settings.home.glob("shop-*/oracle.parquet"))), None)
    judged = click_study.run(settings, encoder, arms, study.whole_seeds(seeds), times, oracle=oracle)
    named = json.dumps([[arm.name for arm in arms], seeds, *([days] if days is not None else [])])
    key = hashlib.sha256(named.encode()).hexdigest()[:6]  # a small study keeps the large one's table
    place = settings.home / "studies" / f"{kind}-v{encoder}-{key}.md"
    against = reference if isinstance(reference, str) else reference(judged)
    place.write_text(f"Differences are to {against}.\n\n{click_study.table(judged, arms, against)}")
    if finished:
        finish(settings, kind, [place])
    return judged, place


@dataclass(frozen=True)
class _Ran:
    """What a study left: the full recipe, every outcome, the names of its arms in order, and where its files go."""

    settings: Settings
    full: EncoderRecipe
    outcomes: list[Outcome]
    arms: list[str]
    place: Path


def _run(kind: str, home: Path | None, name: str, seeds: str, only: str, trained_until: str | None, changes: Sequence[str] = ()) -> _Ran:
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe
    from moon_ops.release.windows import windows
    from moon_ops.studies import encoder as study
    from moon_ops.studies.arms import ENCODER_STUDIES

    settings = settings_of(home)
    full = recipe(EncoderRecipe, name, settings.models, changes=changes)
    arms: Sequence[Arm] = ENCODER_STUDIES[kind](full)
    words = [word.strip() for word in only.split(",") if word.strip()]
    chosen = [arm for arm in arms if not words or any(word in arm.name for word in words)]
    if not chosen:
        raise InputError(f"only = {only!r} names no arm (there are: {', '.join(arm.name for arm in arms)})", action="give a word of some")
    numbers = study.whole_seeds(seeds)
    times = windows(settings.lake, trained_until=moment(trained_until))
    place = study.place_of(settings, kind, full, times)
    outcomes = study.run(settings, kind, full, chosen, numbers, times, place=place)
    done = {outcome.arm for outcome in outcomes}  # of this call and of earlier ones
    return _Ran(settings, full, outcomes, [arm.name for arm in arms if arm.name in done], place)


def finish(settings: Settings, kind: str, written: list[Path], metrics: dict[str, float] | None = None, show: int = 0) -> None:
    """Keep what a study has written in a run of MLflow, and print the one of them that says most."""
    from moon_ops.registry.registry import Registry

    registry = Registry(settings)
    run_id = registry.start_run(f"study {kind}", {}, {"study": kind})
    for path in written:
        registry.client.log_artifact(run_id, str(path))
        typer.echo(f"wrote {path}")
    registry.log(run_id, metrics or {})
    registry.finish(run_id)
    typer.echo(written[show].read_text())
