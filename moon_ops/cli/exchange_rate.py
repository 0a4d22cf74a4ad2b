"""``moon exchange-rate``: what image-search recall is worth in AUC."""

from __future__ import annotations

from typing import Annotated

import typer

from moon_ops.cli.studies import Home, Seeds, TrainedUntil, finish
from moon_ops.cli.terminal import SetClick, moment, now, settings_of
from moon_ops.errors import InputError


def exchange_rate(
    home: Home = None,
    recipe: Annotated[str, typer.Option(help="Click recipe in models/, the same for all encoders.")] = "ctr-cube",
    seeds: Seeds = "0,1,2",
    encoders: Annotated[str, typer.Option(help="Only these versions of moon-encoder, with commas.", show_default=False)] = "",
    predict: Annotated[
        int | None, typer.Option(help="Only write down the AUC that this encoder's click models should have, before they are trained.")
    ] = None,
    trained_until: TrainedUntil = None,
    set_: SetClick = None,
) -> None:
    """What image-search recall is worth in click model AUC, over all registered encoders, beside rival metrics; how far that is off on an
    encoder that is left out; and what it predicted before, beside what was found.

    Example: moon exchange-rate
    """
    from moon_ops.release.expected_gain import worth
    from moon_ops.release.windows import windows
    from moon_ops.studies import encoder as study
    from moon_ops.studies import exchange_rate as stage
    from moon_ops.studies import exchange_rate_shown as shown
    from moon_ops.studies import predictions
    from moon_ops.studies.click_arms import ClickArm

    settings, parts = settings_of(home), [part.strip() for part in encoders.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"encoders = {encoders!r} must be versions with commas", action="give e.g. 1,2,3,4,5,6")
    times = windows(settings.lake, trained_until=moment(trained_until))
    arm, numbers = ClickArm(recipe, recipe, changes=tuple(set_ or ())), study.whole_seeds(seeds)
    if predict is not None:
        typer.echo(predictions.table([stage.predict(settings, predict, arm, numbers, times, now=now())]))
        return
    points, left_out = stage.measure(settings, arm, numbers, times, [int(part) for part in parts])
    found = stage.rate(points)
    for version, why in left_out.items():
        typer.echo(f"encoder {version} is left out: {why}")
    written, listed = shown.keep(settings, points, found, left_out, stage.terms(arm, numbers, times))
    finish(settings, "exchange-rate", written, shown.figures(found, listed), show=1)
    value, low, high = worth(settings, 0.008)
    typer.echo(f"recall@10 +0.8 points is worth {value:+.4f} AUC [{low:+.4f}, {high:+.4f}]")
