"""``moon study cross-fitted``: what it costs that vectors have seen what click models learn from."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import typer

from moon_ops.cli.studies import Encoder, Home, Seeds, finish
from moon_ops.cli.terminal import SetClick, settings_of
from moon_ops.errors import InputError


def cross_fitted(
    encoder: Encoder,
    home: Home = None,
    recipes: Annotated[str, typer.Option(help="Click recipes that read cosines alone, with commas.")] = "ctr-din-cos,ctr-simtier",
    encoder_recipe: Annotated[str, typer.Option(help="Encoder recipe in models/ that is trained without each fold.")] = "moon-tiny",
    folds: Annotated[int, typer.Option(help="Parts of the time before the encoder's end; one training each, and one of all.", min=2)] = 3,
    seeds: Seeds = "0,1,2",
    set_: SetClick = None,
) -> None:
    """Train click models on cosines of encoders that have not seen the rows' clicks, beside those of one that has; the encoder says what
    is published, and until when is trained. --set changes the click recipes.

    Example: moon study cross-fitted --encoder 1
    """
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe
    from moon_ops.registry.encoders import encoder_version
    from moon_ops.release.windows import windows
    from moon_ops.studies import cross_fitted as study
    from moon_ops.studies.click_arms import ClickArm
    from moon_ops.studies.encoder import whole_seeds

    settings, names = settings_of(home), list(dict.fromkeys(name.strip() for name in recipes.split(",") if name.strip()))
    if not names:
        raise InputError(f"recipes = {recipes!r} names none", action="give e.g. ctr-din-cos")
    arms = [ClickArm(name, name, changes=tuple(set_ or ())) for name in names]
    full = recipe(EncoderRecipe, encoder_recipe, settings.models)
    times = windows(settings.lake, seen_until=encoder_version(settings, encoder).trained_until)
    oracle = next(iter(sorted(settings.home.glob("shop-*/oracle.parquet"))), None)
    found = study.run(settings, encoder, arms, whole_seeds(seeds), times, full=full, folds=folds, oracle=oracle)
    key = hashlib.sha256(json.dumps([names, encoder_recipe, folds, seeds, set_]).encode()).hexdigest()[:6]
    place = settings.home / "studies" / f"cross-fitted-v{encoder}-{key}.md"
    place.write_text(study.table(found, arms))
    finish(settings, "cross-fitted", [place])
