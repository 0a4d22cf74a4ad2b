"""What of a checkpoint is trained: adapters beside its weights, merged when it is saved, or what is not frozen."""

from __future__ import annotations

import copy
import datetime as dt
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moon_ops.encoder import optimizers
from moon_ops.encoder.export import export
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.objectives import Sides
from moon_ops.encoder.train import train
from moon_ops.errors import InputError
from moon_ops.inputs.contract import Contract
from moon_ops.lake.lake import Lake
from moon_ops.recipes.encoder import EncoderRecipe, Experts, Frozen, Inputs, Lora, Training

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug for tea", "category | lamp | dotted"] * 8
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
FAMILIES = ("smolvlm", "qwen3_vl")
TOWER = {"smolvlm": "vision_model.encoder.layers.", "qwen3_vl": "visual.blocks."}
TRUNK = {"smolvlm": "text_model.layers.", "qwen3_vl": "language_model.layers."}
JOINT = {"smolvlm": ("connector.",), "qwen3_vl": ("visual.merger.", "visual.deepstack_merger_list.")}
RATES = {"batch": 8, "learning_rate": 1e-2, "warmup_steps": 0, "checkpoint_steps": 2}


def tiny(family: str, **override: Any) -> EncoderRecipe:
    return EncoderRecipe(
        **{
            "name": "tiny",
            "family": family,
            "inputs": Inputs(picture_size=32, max_text_tokens=24),
            "training": Training(**RATES),
            "vocabulary": 500,
            "vision": VISION,
            "text": TEXT,
            **override,
        }
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each family, with weights far from zero: with the usual start a wrong merge would hide in the last digits."""
    places = {}
    for family in FAMILIES:
        encoder, generator = build(tiny(family), TEXTS, seed=0), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in encoder.model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        places[family] = tmp_path_factory.mktemp(family)
        encoder.save(places[family])
    return places


def of(checkpoints: dict[str, Path], family: str, **override: Any) -> EncoderRecipe:
    return tiny(family, checkpoint=str(checkpoints[family]), vision={}, text={}, **override)


def samples(encoder: Encoder) -> tuple[torch.Tensor, ...]:
    ids, mask = encoder.layout.batch(
        [encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in ("red mug", "lamp", "boots")], [1, 0, 2]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pixels)


def taught(encoder: Encoder, training: Training, steps: int = 3) -> Encoder:
    """A few steps that change the vectors."""
    model, inputs = Sides(encoder, 0.07), samples(encoder)
    chosen = optimizers.build(model, training)
    generator = torch.Generator().manual_seed(1)
    wanted = torch.nn.functional.normalize(torch.randn((3, encoder.dim), generator=generator), dim=-1)
    for _ in range(steps):
        (-(encoder(*inputs) * wanted).sum()).backward()
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad()
    return encoder.eval()


def trainable(encoder: Encoder) -> set[str]:
    return {name for name, weight in encoder.model.named_parameters() if weight.requires_grad}


def adapted(encoder: Encoder) -> set[str]:
    """The layers with adapters."""
    return {name.partition(".lora_")[0] for name in trainable(encoder)}


@pytest.mark.parametrize("family", FAMILIES)
def test_which_layers_get_adapters(checkpoints: dict[str, Path], family: str) -> None:
    pytest.importorskip("peft")
    trunk, tower, joint = TRUNK[family], TOWER[family], JOINT[family]
    whole = adapted(build(of(checkpoints, family, lora=Lora(rank=2)), [], 0))
    assert {name for name in whole if name.startswith(trunk)} == {
        f"{trunk}{n}.{layer}"
        for n in range(3)
        for layer in (*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))
    }
    assert sum(name.startswith(tower) for name in whole) == 3 * {"smolvlm": 6, "qwen3_vl": 4}[family]
    assert any(name.startswith(joint) for name in whole)
    assert all(name.startswith((trunk, tower, *joint)) for name in whole)
    text = adapted(build(of(checkpoints, family, lora=Lora(rank=2, parts="text")), [], 0))
    assert text == {name for name in whole if name.startswith(trunk)}
    seen = adapted(build(of(checkpoints, family, lora=Lora(rank=2, parts="tower", layers="attention")), [], 0))
    assert seen == {name for name in whole if name.startswith(tower) and "attn" in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_with_adapters_begins_as_its_checkpoint(checkpoints: dict[str, Path], family: str) -> None:
    pytest.importorskip("peft")
    plain = build(of(checkpoints, family), [], 0).eval()
    beside = build(of(checkpoints, family, lora=Lora(rank=4)), [], 0).eval()
    with torch.no_grad():
        assert torch.equal(plain(*samples(plain)), beside(*samples(beside)))
    assert beside.parameter_count() == plain.parameter_count() == plain.trained_count()
    layers = [weight for name, weight in beside.model.named_parameters() if "lora_" in name]
    assert beside.trained_count() == sum(weight.numel() for weight in layers) < 0.5 * plain.trained_count()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_learn_and_are_merged_when_it_is_saved(checkpoints: dict[str, Path], family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = of(checkpoints, family, lora=Lora(rank=4, alpha=16))
    encoder = build(recipe, [], 0)
    base = {name: weight.clone() for name, weight in encoder.model.state_dict().items() if "lora_" not in name}
    with torch.no_grad():
        before = encoder.eval()(*samples(encoder))
    taught(encoder, recipe.training)
    assert all(torch.equal(base[name], weight) for name, weight in encoder.model.state_dict().items() if name in base)
    with torch.no_grad():
        learned = encoder(*samples(encoder))
    assert (learned - before).abs().max() > 0.05
    state = copy.deepcopy(encoder.state_dict())
    encoder.save(tmp_path)
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items()), "and goes on from where it was"
    saved, known = load_file(tmp_path / "model.safetensors"), load_file(checkpoints[family] / "model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {name: value.shape for name, value in known.items()}
    again = Encoder.load(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(*samples(again)), learned, atol=1e-5, rtol=0)
    certificate = export(tmp_path)
    assert certificate.min_cosine > 0.9999
    assert Contract.load(tmp_path).dim == encoder.dim


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_can_be_adapted_again(checkpoints: dict[str, Path], family: str, tmp_path: Path) -> None:
    """What was saved is a checkpoint as the first one was."""
    pytest.importorskip("peft")
    recipe = of(checkpoints, family, lora=Lora(rank=4))
    first = taught(build(recipe, [], 0), recipe.training)
    first.save(tmp_path)
    second = build(replace(recipe, checkpoint=str(tmp_path)), [], 1).eval()
    with torch.no_grad():
        torch.testing.assert_close(second(*samples(second)), first(*samples(first)), atol=1e-5, rtol=0)


def test_muon_leaves_adapters_to_adamw(checkpoints: dict[str, Path]) -> None:
    pytest.importorskip("peft")
    encoder = build(of(checkpoints, "qwen3_vl", lora=Lora(rank=2)), [], 0)
    training = Training(batch=8, learning_rate=1e-3, matrix_learning_rate=1e-2, tower_share=0.25)
    (adamw,) = optimizers.build(encoder, training)
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in encoder.model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in named.items() if name.startswith("visual")} == {0.25e-3}
    assert {rate for name, rate in named.items() if name.startswith("language_model")} == {1e-3}


def test_experts_are_trained_beside_adapters(checkpoints: dict[str, Path]) -> None:
    pytest.importorskip("peft")
    encoder = build(of(checkpoints, "smolvlm", lora=Lora(rank=2), experts=Experts(routed=2)), [], 0)
    assert encoder.experts is not None
    assert all(weight.requires_grad for weight in encoder.experts.parameters())


WAYS: dict[str, dict[str, Any]] = {"adapters": {"lora": Lora(rank=3)}, "frozen blocks": {"frozen": Frozen(tower=2, text=1)}}


def recipe_of(checkpoints: dict[str, Path], way: str, **stages: Any) -> EncoderRecipe:
    chosen = of(checkpoints, "smolvlm", **WAYS[way])
    first = replace(chosen.stage1, steps=3)
    return replace(chosen, stage1=first, stage2a=replace(chosen.stage2a, steps=4), training=replace(chosen.training, chunk=3))


def trained(lake: Lake, out: Path, recipe: EncoderRecipe, die_at: int = -1, **more: Any) -> Any:
    def listen(step: int, found: dict[str, float]) -> None:
        if step == die_at:
            raise KeyboardInterrupt

    return train(lake, out, recipe, trained_until=UNTIL, seed=0, on_step=listen, **more)


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_with_the_same_weights(
    checkpoints: dict[str, Path], lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Of what is frozen the checkpoint of a training holds nothing."""
    if way == "adapters":
        pytest.importorskip("peft")
    monkeypatch.setattr("moon_ops.encoder.fit.LOG_STEPS", 1)
    recipe = recipe_of(checkpoints, way)
    report = trained(lake, tmp_path / "whole", recipe, keep_stages=True)
    about = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert about["trained"] == report.trained == build(recipe, [], 0).trained_count() < about["parameters"]
    with pytest.raises(KeyboardInterrupt):
        trained(lake, tmp_path / "killed", recipe, die_at=5)
    (kept,) = (tmp_path / "killed.partial").glob("stage2a-*/model.safetensors")
    stored = load_file(kept)
    fresh = build(recipe, [], 0)
    assert {name.removeprefix("encoder.model.") for name in stored} >= trainable(fresh)
    assert sum(value.numel() for value in stored.values()) < report.trained + 500, "and temperature and buffers"
    again = trained(lake, tmp_path / "killed", recipe)
    assert again.resumed_at == 5
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, last = (load_file(tmp_path / place / "model.safetensors") for place in ("whole-stage1", "whole"))
    assert any(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_whose_checkpoint_has_changed_does_not_go_on(
    checkpoints: dict[str, Path], lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "adapters":
        pytest.importorskip("peft")
    monkeypatch.setattr("moon_ops.encoder.fit.LOG_STEPS", 1)
    place = tmp_path / "checkpoint"
    place.mkdir()
    for file in checkpoints["smolvlm"].iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    recipe = recipe_of({"smolvlm": place}, way)
    with pytest.raises(KeyboardInterrupt):
        trained(lake, tmp_path / "e", recipe, die_at=3)
    weights = load_file(place / "model.safetensors")
    save_file({name: value + 0.5 for name, value in weights.items()}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"frozen weights are not those with which .* began: .* checkpoint has changed → bring back"):
        trained(lake, tmp_path / "e", recipe)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        (Frozen(embeddings=True), {"embed_tokens"}),
        (Frozen(text=1), {"embed_tokens", "text 0"}),
        (Frozen(tower=2), {"embeddings", "tower 0", "tower 1"}),
        (Frozen(tower=-1), {"embeddings", "tower 0", "tower 1", "tower 2", "after the tower"}),
        (Frozen(text=-1), {"embed_tokens", "text 0", "text 1", "text 2", "after the text"}),
    ],
)
def test_what_is_frozen_stays_and_all_else_learns(checkpoints: dict[str, Path], family: str, frozen: Frozen, still: set[str]) -> None:
    def part(name: str) -> str:
        for what, prefix in (("tower", TOWER[family]), ("text", TRUNK[family])):
            if name.startswith(prefix):
                return f"{what} {name.removeprefix(prefix)[0]}"
        if "embed_tokens" in name:
            return "embed_tokens"
        if name.startswith(JOINT[family]):
            return "joint"
        if name.startswith(("vision_model.embeddings.", "visual.patch_embed.", "visual.pos_embed.")):
            return "embeddings"
        return "after the tower" if name.startswith("vision_model.post_layernorm.") else "after the text"

    recipe = of(checkpoints, family, frozen=frozen)
    encoder = build(recipe, [], 0)
    before = {name: weight.detach().clone() for name, weight in encoder.model.named_parameters()}
    taught(encoder, recipe.training)
    changed = {part(name) for name, weight in encoder.model.named_parameters() if not torch.equal(before[name], weight)}
    assert {part(name) for name in before} - changed == still & {part(name) for name in before}


def test_frozen_blocks_get_no_adapters(checkpoints: dict[str, Path]) -> None:
    pytest.importorskip("peft")
    names = adapted(build(of(checkpoints, "qwen3_vl", lora=Lora(rank=2), frozen=Frozen(tower=-1, text=2)), [], 0))
    assert {name.split(".")[0] for name in names} == {"visual", "language_model"}
    assert {name for name in names if name.startswith("visual")} == {name for name in names if name.startswith(JOINT["qwen3_vl"])}
    assert all(name.startswith("language_model.layers.2.") for name in names if name.startswith("language_model"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"frozen": Frozen(text=4)}, r"frozen\.text = 4, but the checkpoint has 3 blocks there"),
    ({"frozen": Frozen(tower=9)}, r"frozen\.tower = 9, but the checkpoint has 3 blocks there"),
    ({"lora": Lora(rank=2, parts="text"), "frozen": Frozen(text=-1)}, r"\[lora\] finds no layer: all that it names is frozen"),
]


@pytest.mark.parametrize(("tables", "why"), WRONG)
def test_what_leaves_nothing_to_train_is_refused(checkpoints: dict[str, Path], tables: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        build(of(checkpoints, "smolvlm", **tables), [], 0)


def test_without_peft_the_extra_is_named(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r'\[lora\] needs the package peft .* → pip install "moon_ops\[lora\]"'):
        build(of(checkpoints, "smolvlm", lora=Lora(rank=2)), [], 0)


@pytest.mark.parametrize(("name", "table"), [("lora", Lora(rank=2)), ("frozen", Frozen(text=1))])
def test_random_weights_are_not_to_be_kept(name: str, table: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} = .* must be left out without a checkpoint"):
        tiny("smolvlm", **{name: table})
