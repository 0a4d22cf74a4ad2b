"""``moon study``: small grids of encoder recipes, with a table and figures of what each part is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moon_ops.errors import InputError
from moon_ops.settings import Settings, moment

if TYPE_CHECKING:
    from moon_ops.recipes import EncoderRecipe
    from moon_ops.release.study import Outcome
    from moon_ops.release.study_arms import Arm

app = typer.Typer(no_args_is_help=True, help=__doc__)

Home = Annotated[Path | None, typer.Option(help="Where everything is kept; default: MOON_HOME, else ./.moon", show_default=False)]
Recipe = Annotated[str, typer.Option(help="Encoder recipe in models/ that is the full one.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas; three for a claim.")]
Only = Annotated[str, typer.Option(help="Only arms whose name holds one of these words, with commas.", show_default=False)]
TrainedUntil = Annotated[str | None, typer.Option(help="A time, ISO 8601; default: three quarters of the events.", show_default=False)]


@app.command()
def ablation(
    home: Home = None, recipe: Recipe = "moon-study", seeds: Seeds = "0,1,2", only: Only = "", trained_until: TrainedUntil = None
) -> None:
    """Train without each stage and each part, and tell what it costs; the table goes to MOON_HOME/studies and to MLflow.

    Example: moon study ablation --recipe moon-study --seeds 0,1,2
    """
    from moon_ops.release import study
    from moon_ops.release.study_arms import FULL
    from moon_ops.release.study_figures import ablation_figure

    ran = _run("ablation", home, recipe, seeds, only, trained_until)
    written, drawn = ran.place.with_suffix(".md"), ran.place.with_suffix(".png")
    written.write_text(study.table(ran.outcomes, ran.arms, FULL))
    ablation_figure(ran.outcomes, ran.arms, FULL, drawn)
    _finish(ran.settings, "ablation", [written, drawn])


@app.command()
def scaling(
    home: Home = None, recipe: Recipe = "moon-study", seeds: Seeds = "0,1,2", only: Only = "", trained_until: TrainedUntil = None
) -> None:
    """Train with more and fewer tokens, and with more and fewer negatives, and draw both curves.

    Example: moon study scaling --recipe moon-study --seeds 0,1,2
    """
    from moon_ops.release import study
    from moon_ops.release.study_figures import scaling_figure

    ran = _run("scaling", home, recipe, seeds, only, trained_until)
    written, drawn = ran.place.with_suffix(".md"), ran.place.with_suffix(".png")
    written.write_text(study.table(ran.outcomes, ran.arms, "tokens x 1"))
    scaling_figure(ran.outcomes, drawn)
    _finish(ran.settings, "scaling", [written, drawn])


@dataclass(frozen=True)
class _Ran:
    """What a study left: the full recipe, every outcome, the names of its arms in order, and where its files go."""

    settings: Settings
    full: EncoderRecipe
    outcomes: list[Outcome]
    arms: list[str]
    place: Path


def _run(kind: str, home: Path | None, name: str, seeds: str, only: str, trained_until: str | None) -> _Ran:
    from moon_ops.recipes import EncoderRecipe, recipe
    from moon_ops.release import study, study_arms
    from moon_ops.release.windows import windows

    settings = Settings.from_environment(home)
    full = recipe(EncoderRecipe, name, settings.models)
    arms: Sequence[Arm] = study_arms.ablation(full) if kind == "ablation" else study_arms.scaling(full)
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


def _finish(settings: Settings, kind: str, written: list[Path]) -> None:
    from moon_ops.release.registry import Registry

    registry = Registry(settings)
    run_id = registry.start_run(f"study {kind}", {}, {"study": kind})
    for path in written:
        registry.client.log_artifact(run_id, str(path))
        typer.echo(f"wrote {path}")
    registry.finish(run_id)
    typer.echo(written[0].read_text())
