"""The arms of the studies: what each changes in the full recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moon_ops.recipes.encoder import EncoderRecipe, Experts, Stage1, Stage2a, Stage2b

Change = Callable[[EncoderRecipe], EncoderRecipe]
FULL = "+ stage 2b (full)"


@dataclass(frozen=True)
class Arm:
    """One column of a study: a name, and what it changes in the full recipe."""

    name: str
    change: Change


PAPER_SHARES = {  # of 2.6 billion pairs (MOON, table of stage 2a)
    "text:rich": 0.2,
    "text:image": 0.2,
    "text:title+image": 0.2,
    "text:rich+image": 0.5,
    "image:image": 0.2,
    "image:title+image": 0.5,
    "image:rich+image": 0.2,
    "title+image:title+image": 0.5,
    "rich+image:rich+image": 0.1,
}


def ablation(full: EncoderRecipe) -> list[Arm]:
    """Untrained, the stages one after another, the full recipe minus each of its parts, and plus each part that it leaves out.

    Only the ladder takes fewer steps than the full recipe: a stage that is taken away leaves its steps to another one. Of arms that train
    the same (a recipe that leaves stage 2b out is not changed by its parts) only one is there.
    """
    ladder = [
        Arm("untrained", lambda r: _stages(r, 0, 0, 0)),
        Arm("+ stage 1", lambda r: _stages(r, r.stage1.steps, 0, 0)),
        Arm("+ stage 2a", lambda r: _stages(r, r.stage1.steps, r.stage2a.steps, 0)),
        Arm(FULL, lambda r: r),
    ]
    arms = ladder + [Arm(f"{'−' if _used(full, part) else '+'} {part}", _toggled(part, full)) for part in PARTS]
    known, out = [_trained(full)], []
    for arm in arms:
        changed = _trained(arm.change(full))
        if arm.name == FULL or changed not in known:
            out.append(arm)
            known.append(changed)
    return out


AVERAGED = 0.95  # of weights: over about twenty steps, since the study's stages have 50 and 180
# Each part: is it in the recipe, the recipe without it, the recipe with it.
PARTS: dict[str, tuple[Callable[[EncoderRecipe], bool], Change, Change]] = {
    "stage 1": (lambda r: r.stage1.steps > 0, lambda r: _given(r, "stage1", "stage2a" if r.stage2a.steps else "stage2b"), lambda r: r),
    "stage 2a": (lambda r: r.stage2a.steps > 0, lambda r: _given(r, "stage2a", "stage2b"), lambda r: r),
    "steps of 2b given to 2a": (
        lambda _: False,
        lambda r: r,
        lambda r: _given(r, "stage2b", "stage2a"),
    ),
    "clicks and carts": (
        lambda r: r.stage2a.events != ("purchase",),
        lambda r: _with(r, "stage2a", events=("purchase",)),
        lambda r: _with(r, "stage2a", events=("click", "cart", "purchase")),
    ),
    "pair types": (
        lambda r: bool(r.stage2a.pairs),
        lambda r: _with(r, "stage2a", pairs={}),
        lambda r: _with(r, "stage2a", pairs=PAPER_SHARES),
    ),
    "MIM's three levels": (
        lambda r: r.stage2a.loss == "mim",
        lambda r: _with(r, "stage2a", loss="info_nce"),
        lambda r: _with(r, "stage2a", loss="mim"),
    ),
    "within-product alignment": (
        lambda r: r.stage2a.within_product > 0,
        lambda r: _with(r, "stage2a", within_product=0.0),
        lambda r: _with(r, "stage2a", within_product=0.5),
    ),
    "photographs made of item pictures": (
        lambda r: r.training.synthetic > 0,
        lambda r: _with(r, "training", synthetic=0.0),
        lambda r: _with(r, "training", synthetic=0.5),
    ),
    "other backdrops": (
        lambda r: r.training.backdrops,
        lambda r: _with(r, "training", backdrops=False),
        lambda r: _with(r, "training", backdrops=True),
    ),
    "all pictures that are served": (
        lambda r: r.training.pictures >= r.inputs.max_pictures,
        lambda r: _with(r, "training", pictures=1, fewest_pictures=0),
        lambda r: _with(r, "training", pictures=r.inputs.max_pictures),
    ),
    "augmentation": (
        lambda r: r.training.augment,
        lambda r: _with(r, "training", augment=False, synthetic=0.0),
        lambda r: _with(r, "training", augment=True),
    ),
    "text dropout": (
        lambda r: r.training.text_dropout > 0,
        lambda r: _with(r, "training", text_dropout=0.0),
        lambda r: _with(r, "training", text_dropout=0.3),
    ),
    "Matryoshka": (
        lambda r: bool(r.training.prefixes),
        lambda r: _with(r, "training", prefixes=()),
        lambda r: _with(r, "training", prefixes=tuple(int(r.text["hidden_size"]) // n for n in (4, 2))) if r.text else r,
    ),
    "least similar query": (
        lambda r: r.stage2b.least_similar,
        lambda r: _with(r, "stage2b", least_similar=False),
        lambda r: _with(r, "stage2b", least_similar=True),
    ),
    "SPU merge": (
        lambda r: r.stage2b.spu_merge,
        lambda r: _with(r, "stage2b", spu_merge=False),
        lambda r: _with(r, "stage2b", spu_merge=True),
    ),
    "category balance": (
        lambda r: r.stage2b.category_balance,
        lambda r: _with(r, "stage2b", category_balance=False),
        lambda r: _with(r, "stage2b", category_balance=True),
    ),
    "entity filter": (
        lambda r: r.stage2b.least_entities > 0,
        lambda r: _with(r, "stage2b", least_entities=0),
        lambda r: _with(r, "stage2b", least_entities=2),
    ),
    "hard negatives": (
        lambda r: r.stage2b.hard_negatives > 0,
        lambda r: _with(r, "stage2b", hard_negatives=0),
        lambda r: _with(r, "stage2b", hard_negatives=1),
    ),
    "queue": (lambda r: r.stage2b.queue > 0, lambda r: _with(r, "stage2b", queue=0), lambda r: _with(r, "stage2b", queue=1024)),
    "circle loss": (
        lambda r: r.stage2b.loss == "circle",
        lambda r: _with(r, "stage2b", loss="info_nce"),
        lambda r: _with(r, "stage2b", loss="circle"),
    ),
    "near-identical photographs once": (
        lambda r: r.deduplicate >= 0,
        lambda r: replace(r, deduplicate=-1),
        lambda r: replace(r, deduplicate=4),
    ),
    "core region": (
        lambda r: bool(r.inputs.core_region),
        lambda r: _with(r, "inputs", core_region=""),
        lambda r: _with(r, "inputs", core_region="saliency"),
    ),
    "moving average of weights": (
        lambda r: r.training.ema > 0,
        lambda r: _with(r, "training", ema=0.0),
        lambda r: _with(r, "training", ema=AVERAGED),
    ),
    "experts": (
        lambda r: r.experts is not None,
        lambda r: replace(r, experts=None),
        lambda r: replace(r, experts=Experts(routed=4)),
    ),
    "guided experts, balanced": (
        lambda r: r.experts is not None and bool(r.experts.balance and r.experts.queries),
        lambda r: replace(r, experts=replace(r.experts, balance=0.0, queries=False)) if r.experts else r,
        lambda r: replace(r, experts=replace(r.experts or Experts(routed=4), balance=0.01, queries=True)),
    ),
}


INFO_NCE = "InfoNCE"


def circles(_: EncoderRecipe) -> list[Arm]:
    """Stage 2b with InfoNCE, and with circle loss by margin and scale, without queue; once from queries to items alone.

    Circle loss's paper takes margin .25 and scale 256 for faces, .25 and 128 for persons, and .4 and 80 for retrieval.
    """
    plain: dict[str, Any] = {"queue": 0, "loss": "circle"}
    grid = [(margin, scale) for margin in (0.1, 0.25, 0.4, 0.6) for scale in (32.0, 80.0, 256.0)]
    arms = [Arm(INFO_NCE, lambda r: _with(r, "stage2b", queue=0, loss="info_nce"))]
    arms += [Arm(f"circle {m:g}, {g:g}", lambda r, m=m, g=g: _with(r, "stage2b", margin=m, scale=g, **plain)) for m, g in grid]  # type: ignore[misc]
    return [*arms, Arm("circle 0.4, 80, one way", lambda r: _with(r, "stage2b", margin=0.4, scale=80.0, both_ways=False, **plain))]


def scaling(full: EncoderRecipe) -> list[Arm]:
    """Training tokens (steps of all stages together) and negatives (pairs per step, at the same number of pairs in all)."""
    by_tokens = [Arm(f"tokens x {share:g}", _share(share)) for share in (0.125, 0.25, 0.5, 1.0, 2.0)]
    by_negatives = [Arm(f"negatives {size - 1}", _batch(size)) for size in (8, 16, 32, 64, 128, 256) if size <= 4 * full.training.batch]
    return by_tokens + by_negatives


ENCODER_STUDIES: dict[str, Callable[[EncoderRecipe], list[Arm]]] = {"ablation": ablation, "scaling": scaling, "circle-loss": circles}


def _trained(recipe: EncoderRecipe) -> EncoderRecipe:
    """The recipe without what has no effect in it: two that are equal here train the same."""
    training = recipe.training if recipe.training.synthetic else replace(recipe.training, backdrops=True)
    first = recipe.stage1 if recipe.stage1.steps else Stage1()
    second = recipe.stage2a if recipe.stage2a.steps else Stage2a()
    last = recipe.stage2b if recipe.stage2b.steps else Stage2b()
    return replace(recipe, training=training, stage1=first, stage2a=second, stage2b=last)


def _used(full: EncoderRecipe, part: str) -> bool:
    return PARTS[part][0](full)


def _toggled(part: str, full: EncoderRecipe) -> Change:
    used, without, with_it = PARTS[part]
    return without if used(full) else with_it


def _with(recipe: EncoderRecipe, table: str, **values: Any) -> EncoderRecipe:
    """The recipe with other values in one of its tables."""
    return replace(recipe, **{table: replace(getattr(recipe, table), **values)})


def _stages(recipe: EncoderRecipe, first: int, second: int, last: int) -> EncoderRecipe:
    return _with(_with(_with(recipe, "stage1", steps=first), "stage2a", steps=second), "stage2b", steps=last)


def _given(recipe: EncoderRecipe, gone: str, to: str) -> EncoderRecipe:
    """The recipe with the steps of a stage given to another one that it has; untrained where it has no other."""
    moved = getattr(recipe, gone).steps if getattr(recipe, to).steps else 0
    return _with(_with(recipe, gone, steps=0), to, steps=getattr(recipe, to).steps + moved)


def _share(share: float) -> Change:
    return lambda r: r.with_steps(round(r.steps * share))


def _batch(size: int) -> Change:
    """As many pairs in all, in batches of ``size``; without the queue, whose negatives would be many more."""
    return lambda r: _with(_with(r, "training", batch=size), "stage2b", queue=0).with_steps(round(r.steps * r.training.batch / size))
