"""Arms of a study: each changes what its name says and nothing else, and is a recipe that could stand in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from moon_ops.recipes.encoder import PAIR_TYPES, EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT
from moon_ops.studies.arms import FULL, INFO_NCE, PAPER_SHARES, ablation, circles, scaling

FILE = recipe(EncoderRecipe, "moon-study", ROOT / "models")
PINNED: dict[str, Any] = {  # so that the file may change
    "training": {"batch": 64, "augment": True, "synthetic": 0.5, "text_dropout": 0.3, "prefixes": [24, 48]},
    "stage1": {"steps": 40},
    "stage2a": {"steps": 200, "events": ["click", "cart", "purchase"], "pairs": {}, "loss": "info_nce", "within_product": 0.0},
    "stage2b": {"steps": 80, "loss": "circle", "hard_negatives": 1, "queue": 1024, "least_entities": 2},
}
STUDY = recipe(EncoderRecipe, "moon-study", ROOT / "models", **PINNED)


def changed(arm: EncoderRecipe, full: EncoderRecipe = STUDY) -> dict[str, Any]:
    """The switches in which two recipes differ, with the first one's values."""

    def flat(chosen: EncoderRecipe) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in asdict(chosen).items():
            out |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) and key != "experts" else {key: value}
        return out

    before, after = flat(full), flat(arm)
    return {name: value for name, value in after.items() if value != before[name]}


ARMS: dict[str, dict[str, Any]] = {
    "untrained": {"stage1.steps": 0, "stage2a.steps": 0, "stage2b.steps": 0},
    "+ stage 1": {"stage2a.steps": 0, "stage2b.steps": 0},
    "+ stage 2a": {"stage2b.steps": 0},
    FULL: {},
    "− stage 1": {"stage1.steps": 0, "stage2a.steps": STUDY.stage1.steps + STUDY.stage2a.steps},
    "− stage 2a": {"stage2a.steps": 0, "stage2b.steps": STUDY.stage2a.steps + STUDY.stage2b.steps},
    "+ steps of 2b given to 2a": {"stage2a.steps": STUDY.stage2a.steps + STUDY.stage2b.steps, "stage2b.steps": 0},
    "− clicks and carts": {"stage2a.events": ("purchase",)},
    "+ pair types": {"stage2a.pairs": PAPER_SHARES},
    "+ MIM's three levels": {"stage2a.loss": "mim"},
    "+ within-product alignment": {"stage2a.within_product": 0.5},
    "− photographs made of item pictures": {"training.synthetic": 0.0},
    "− other backdrops": {"training.backdrops": False},
    "− augmentation": {"training.augment": False, "training.synthetic": 0.0},
    "− text dropout": {"training.text_dropout": 0.0},
    "− Matryoshka": {"training.prefixes": ()},
    "− least similar query": {"stage2b.least_similar": False},
    "− SPU merge": {"stage2b.spu_merge": False},
    "− category balance": {"stage2b.category_balance": False},
    "− entity filter": {"stage2b.least_entities": 0},
    "− hard negatives": {"stage2b.hard_negatives": 0},
    "− queue": {"stage2b.queue": 0},
    "− circle loss": {"stage2b.loss": "info_nce"},
    "+ near-identical photographs once": {"deduplicate": 4},
    "+ core region": {"inputs.core_region": "saliency"},
    "+ moving average of weights": {"training.ema": 0.95},
    "+ experts": {"experts": {"routed": 4, "chosen": 1, "width": 64, "balance": 0.0, "queries": False}},
    "+ guided experts, balanced": {"experts": {"routed": 4, "chosen": 1, "width": 64, "balance": 0.01, "queries": True}},
}


def test_each_arm_of_the_ablation_changes_what_its_name_says_and_nothing_else() -> None:
    arms = ablation(STUDY)
    assert {arm.name: changed(arm.change(STUDY)) for arm in arms} == ARMS
    assert [arm.name for arm in arms] == list(ARMS)


def test_the_arms_of_the_projects_study_change_the_same_switches_whatever_their_sign() -> None:
    for arm in ablation(FILE):
        other = f"{'−' if arm.name.startswith('+') else '+'}{arm.name[1:]}"
        assert set(changed(arm.change(FILE), FILE)) <= set(ARMS[arm.name if arm.name in ARMS else other]), arm.name
        assert (arm.change(FILE) == FILE) == (arm.name == FULL)


@pytest.mark.parametrize("full", [STUDY, FILE], ids=["pinned", "as it is"])
def test_every_arm_is_a_recipe_that_could_stand_in_a_file(full: EncoderRecipe) -> None:
    adapter = TypeAdapter(EncoderRecipe)
    arms = [*ablation(full), *scaling(full), *circles(full)]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        made = arm.change(full)
        assert adapter.validate_json(json.dumps(asdict(made)), strict=True) == made, arm.name


@pytest.mark.parametrize("name", [n for n in ARMS if n[2:] not in ("stage 1", "stage 2a", "augmentation") and n not in list(ARMS)[:7]])
def test_what_an_arm_adds_the_next_study_takes_away(name: str) -> None:
    """The parts' other direction: in a study of the changed recipe the same part stands with the other sign, and leads back."""
    there = next(arm for arm in ablation(STUDY) if arm.name == name).change(STUDY)
    back = {arm.name: arm for arm in ablation(there)}
    other = f"{'−' if name.startswith('+') else '+'} {name[2:]}"
    if name == "− photographs made of item pictures":
        assert "− other backdrops" not in back, "there is nothing left that could get another backdrop"
    assert name not in back
    if name == "+ guided experts, balanced":
        with_experts = next(arm for arm in ablation(STUDY) if arm.name == "+ experts").change(STUDY)
        assert back[other].change(there) == with_experts, "the experts stay, as they are without"
        assert back["− experts"].change(there) == STUDY
        return
    assert back[other].change(there) == STUDY


def test_a_stage_that_is_taken_away_leaves_its_steps_to_another() -> None:
    for arm in ablation(STUDY):
        fewer = arm.name in ("untrained", "+ stage 1", "+ stage 2a")
        assert (arm.change(STUDY).steps < STUDY.steps) == fewer, arm.name
    alone = replace(STUDY, stage1=replace(STUDY.stage1, steps=0), stage2b=replace(STUDY.stage2b, steps=0))
    assert "− stage 2a" not in [arm.name for arm in ablation(alone)], "that would be the untrained one"


def test_a_recipe_that_serves_more_pictures_than_it_trains_has_an_arm_that_trains_them_all() -> None:
    two = replace(STUDY, inputs=replace(STUDY.inputs, max_pictures=2))
    there = next(arm for arm in ablation(two) if arm.name == "+ all pictures that are served").change(two)
    assert changed(there, two) == {"training.pictures": 2}
    drawn = replace(there, training=replace(there.training, fewest_pictures=2))
    back = next(arm for arm in ablation(drawn) if arm.name == "− all pictures that are served").change(drawn)
    assert back == two
    assert "+ all pictures that are served" not in {arm.name for arm in ablation(STUDY)}, "it serves one"


def test_the_papers_shares_are_those_of_its_pair_types() -> None:
    assert list(PAPER_SHARES) == list(PAIR_TYPES)
    assert sum(PAPER_SHARES.values()) == pytest.approx(2.6)


def test_a_recipe_without_a_stage_has_no_arms_that_would_train_the_same() -> None:
    """Without stages 1 and 2b neither the ladder's steps nor 2b's parts are a difference."""
    short = replace(STUDY, stage1=replace(STUDY.stage1, steps=0), stage2b=replace(STUDY.stage2b, steps=0))
    gone = {"+ stage 1", "+ stage 2a", "− stage 1", "− stage 2a", "+ steps of 2b given to 2a"}
    gone |= {name for name, values in ARMS.items() if any(switch.startswith("stage2b.") for switch in values)} - {"untrained"}
    assert [arm.name for arm in ablation(short)] == [name for name in ARMS if name not in gone]


def test_a_checkpoint_of_unknown_width_is_not_cut_into_prefixes() -> None:
    hub = recipe(EncoderRecipe, "smolvlm-256m", ROOT / "models")
    assert not {arm.name for arm in ablation(hub)} & {"+ Matryoshka", "− Matryoshka"}


def test_circle_loss_is_tried_by_margin_and_scale_without_a_queue() -> None:
    arms = {arm.name: arm.change(STUDY).stage2b for arm in circles(STUDY)}
    assert {stage.queue for stage in arms.values()} == {0}
    assert arms.pop(INFO_NCE).loss == "info_nce"
    assert {(stage.margin, stage.scale) for stage in arms.values()} == {(m, g) for m in (0.1, 0.25, 0.4, 0.6) for g in (32, 80, 256)}
    assert [name for name, stage in arms.items() if not stage.both_ways] == ["circle 0.4, 80, one way"]
    assert {stage.loss for stage in arms.values()} == {"circle"}


def test_scaling_varies_tokens_at_one_batch_and_negatives_at_one_number_of_pairs() -> None:
    made = {arm.name: arm.change(STUDY) for arm in scaling(STUDY)}
    tokens = {name: (r.steps, r.training.batch) for name, r in made.items() if name.startswith("tokens")}
    assert tokens == {
        "tokens x 0.125": (40, 64), "tokens x 0.25": (80, 64), "tokens x 0.5": (160, 64), "tokens x 1": (320, 64), "tokens x 2": (640, 64),
    }  # fmt: skip
    assert made["tokens x 1"] == STUDY
    half = made["tokens x 0.5"]
    assert (half.stage1.steps, half.stage2a.steps, half.stage2b.steps) == (20, 100, 40)
    negatives = {name: r for name, r in made.items() if name.startswith("negatives")}
    assert {name: r.training.batch for name, r in negatives.items()} == {f"negatives {n - 1}": n for n in (8, 16, 32, 64, 128, 256)}
    assert {r.steps * r.training.batch for r in negatives.values()} == {320 * 64}
    assert {r.stage2b.queue for r in negatives.values()} == {0}, "its negatives would be many more"
    small = replace(STUDY, training=replace(STUDY.training, batch=8))
    assert [arm.name for arm in scaling(small)][5:] == ["negatives 7", "negatives 15", "negatives 31"]
