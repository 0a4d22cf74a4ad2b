"""Guided experts: what each token is given, that they start at nothing, and that they are saved and exported with the encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moon_ops.embeddings.runtime import Runtime
from moon_ops.encoder.experts import FILE, GuidedExperts, LayerExperts
from moon_ops.encoder.export import export
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.tokenizer import separator_ids
from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.recipes.encoder import EncoderRecipe, Experts, Inputs, Training

ITEM = item_sample(
    {"title": "red dress", "category": ["clothes", "dresses"], "attributes": [("material", "cotton")], "description": "for warm days"}
).text
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
FOUR = Experts(routed=4, chosen=2, width=8)


def made(experts: Experts | None = FOUR, seed: int = 0) -> Encoder:
    chosen = EncoderRecipe(
        name="small",
        family="smolvlm",
        inputs=Inputs(picture_size=32, max_text_tokens=24),
        training=Training(batch=2, learning_rate=1e-3),
        vocabulary=400,
        vision=VISION,
        text=TEXT,
        experts=experts,
    )
    return build(chosen, [ITEM] * 8, seed).eval()


def filled(encoder: Encoder) -> GuidedExperts:
    """The encoder's experts, each with weights of its own."""
    assert encoder.experts is not None
    torch.manual_seed(1)
    for parameter in encoder.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.experts


def inputs(encoder: Encoder, texts: list[str], pictures: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = encoder.layout.batch([encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in texts], pictures)
    pixels = torch.randint(0, 256, (sum(pictures), 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(ids), torch.from_numpy(mask), pixels


def hidden(encoder: Encoder, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
    return encoder.hidden(ids, mask, encoder.tokens_or_none(pixels))


@torch.no_grad()
def test_experts_change_nothing_at_first_and_something_later() -> None:
    plain, guided = made(None), made()
    batch = inputs(plain, [ITEM, "red dress"], [1, 0])
    assert torch.equal(plain(*batch), guided(*batch))
    filled(guided)
    assert not torch.allclose(plain(*batch), guided(*batch), atol=1e-3)


def test_the_trunk_is_counted_once() -> None:
    plain, guided = made(None), made()
    assert guided.experts is not None
    own = list(guided.experts.parameters())
    per_layer = 4 * 32 + 3 * (4 + 2) * 8 * 32  # router; gate, up and down of six experts
    assert sum(p.numel() for p in own) == 2 * per_layer
    assert guided.parameter_count() == plain.parameter_count() + 2 * per_layer
    assert not {id(p) for p in own} & {id(p) for p in guided.model.parameters()}
    assert guided.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.parametrize(("expert", "said"), [(4, "clothes dresses"), (5, "cotton")], ids=["category", "attributes"])
@pytest.mark.parametrize("pictures", [0, 1])
@torch.no_grad()
def test_a_guided_expert_is_on_for_its_tokens_alone(expert: int, said: str, pictures: int) -> None:
    """Of the last layer alone, a token's output reaches no other token."""
    plain, guided = made(None), made()
    last = filled(guided).layers[-1]
    torch.nn.init.zeros_(filled(guided).layers[0].down.weight)
    last.down.weight.view(32, 6, 8)[:, [e for e in range(6) if e != expert]] = 0
    batch = inputs(guided, [ITEM, "clothes dresses cotton"], [pictures, pictures])
    touched = (hidden(guided, *batch) - hidden(plain, *batch)).abs().amax(-1) > 1e-6  # [B, L]
    assert guided.tokenizer.decode(batch[0][0][touched[0]].tolist()).strip() == said
    assert not touched[1].any(), "a query has no segments"


def test_segments_are_counted_by_tokens_that_separate() -> None:
    trunk = made(None).trunk
    experts = GuidedExperts(trunk, FOUR, [7, 8])
    experts.read(torch.tensor([[3, 7, 4, 4, 8, 7, 5, 7, 6], [3, 4, 5, 6, 6, 6, 6, 6, 6]]))
    kinds = experts._read[0][0]
    assert kinds[0].int().T.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0]]
    assert not kinds[1].any()


@torch.no_grad()
def test_a_layer_is_the_weighted_sum_of_its_experts() -> None:
    torch.manual_seed(0)
    layer = LayerExperts(16, Experts(routed=3, chosen=2, width=4))
    torch.nn.init.normal_(layer.down.weight)
    x, weights = torch.randn(2, 5, 16), torch.rand(2, 5, 5)
    expected = torch.zeros(2, 5, 16)
    for e in range(5):
        block = slice(4 * e, 4 * e + 4)
        inner = F.silu(x @ layer.gate.weight[block].T) * (x @ layer.up.weight[block].T)
        expected += weights[..., e : e + 1] * (inner @ layer.down.weight[:, block].T)
    assert torch.allclose(layer(x, weights), expected, atol=1e-5)


@torch.no_grad()
def test_a_token_takes_its_most_probable_experts() -> None:
    layer = LayerExperts(3, Experts(routed=3, chosen=2, width=4))
    layer.router.weight.copy_(torch.eye(3))
    probability, mask = layer.route(torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]]))
    assert mask.tolist() == [[[1, 0, 1], [0, 1, 1]]]
    assert torch.allclose(probability[0, 0], torch.tensor([3.0, 1.0, 2.0]).softmax(0))


@pytest.mark.parametrize("expert", [0, 1, 2])
@torch.no_grad()
def test_a_routed_expert_acts_on_the_tokens_that_take_it_alone(expert: int) -> None:
    """Of the last layer alone, a token's output reaches no other token."""
    guided = made(Experts(routed=3, chosen=1, width=8))
    experts = filled(guided)
    batch = inputs(guided, [ITEM], [2])
    before = hidden(guided, *batch)
    experts.layers[-1].down.weight[:, 8 * expert : 8 * expert + 8] *= -1
    touched = (hidden(guided, *batch) - before).abs().amax(-1) > 1e-6
    share = experts.usage()[-1][expert].item()
    assert touched.float().mean().item() == pytest.approx(share)
    assert 0 < share < 1


@torch.no_grad()
def test_usage_is_the_share_of_tokens_without_padding() -> None:
    guided = made()
    experts = filled(guided)
    short = inputs(guided, ["red dress"], [1])
    guided(*short)
    alone = experts.usage()
    assert alone.shape == (2, 4)
    assert torch.allclose(alone.sum(1), torch.ones(2))
    ids, mask, pixels = short
    guided(F.pad(ids, (0, 40), value=guided.layout.pad_token_id), F.pad(mask, (0, 40)), pixels)
    assert torch.allclose(experts.usage(), alone, atol=1e-6)
    assert experts.usage().unique().numel() > 2, "experts that all are used alike would show nothing"


def test_balance_is_one_for_equal_use_and_more_when_one_is_always_taken() -> None:
    guided = made(Experts(routed=4, chosen=1, width=8))
    experts = filled(guided)
    batch = inputs(guided, [ITEM], [1])
    with torch.no_grad():
        for layer in experts.layers:
            layer.router.weight.zero_()
        guided(*batch)
        assert experts.balance_loss().item() == pytest.approx(1.0)
        for layer in experts.layers:
            layer.router = torch.nn.Linear(32, 4)
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor([0.0, 0.0, 20.0, 0.0]))
        guided(*batch)
        assert experts.usage().tolist() == [[0, 0, 1, 0]] * 2
        assert experts.balance_loss().item() == pytest.approx(4.0, abs=1e-3)
    torch.nn.init.zeros_(experts.layers[0].router.bias)
    torch.nn.init.normal_(experts.layers[0].router.weight)
    guided(*batch)
    experts.balance_loss().backward()
    assert experts.layers[0].router.weight.grad.abs().sum() > 0


def test_both_router_and_experts_learn() -> None:
    guided = made()
    assert guided.experts is not None
    batch = inputs(guided, [ITEM, "red dress"], [1, 0])
    target = torch.nn.functional.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    optimizer = torch.optim.Adam(guided.experts.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = -(guided(*batch) * target).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in guided.experts.parameters())


@torch.no_grad()
def test_figures_before_a_forward_are_a_fault() -> None:
    guided = made()
    assert guided.experts is not None
    guided(*inputs(guided, [ITEM], [0]))
    guided.experts.read(torch.ones((1, 3), dtype=torch.long))  # the figures of the batch before are not this one's
    with pytest.raises(AssertionError, match="no forward since"):
        guided.experts.usage()


@torch.no_grad()
def test_a_copy_listens_to_its_own_trunk() -> None:
    guided = made()
    experts, batch = filled(guided), inputs(guided, [ITEM], [1])
    before = guided(*batch)
    guided.model, guided.experts = copy.deepcopy((guided.model, experts))
    assert torch.equal(guided(*batch), before)
    for parameter in experts.parameters():
        parameter.zero_()
    assert torch.equal(guided(*batch), before)


@torch.no_grad()
def test_saved_experts_are_read_back(tmp_path: Path) -> None:
    guided, other = made(), made()
    filled(guided).save(tmp_path)
    assert other.experts is not None
    other.experts.load(tmp_path)
    batch = inputs(guided, [ITEM], [1])
    assert torch.equal(other(*batch), guided(*batch))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Experts(routed=4, chosen=2, width=16), r"layers\.0\.down\.weight of shape \[32, 48\].*needs \[32, 96\]"),
        (Experts(routed=3, chosen=2, width=8), r"layers\.0\.down\.weight of shape \[32, 48\].*needs \[32, 40\]"),
    ],
    ids=["width", "number"],
)
def test_experts_of_another_recipe_are_refused(tmp_path: Path, other: Experts, named: str) -> None:
    filled(made()).save(tmp_path)
    experts = made(other).experts
    assert experts is not None
    before = [p.clone() for p in experts.parameters()]
    with pytest.raises(ContractError, match=named):
        experts.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, experts.parameters(), strict=True))


def test_experts_of_a_deeper_trunk_are_refused(tmp_path: Path) -> None:
    deep, shallow = made(), made()
    assert deep.experts is not None
    assert shallow.experts is not None
    del shallow.experts.layers[1]
    shallow.experts.save(tmp_path)
    with pytest.raises(ContractError, match=r"layers\.1\.down\.weight of shape nothing"):
        deep.experts.load(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no tensors"], ids=["no file", "empty", "garbage"])
def test_a_file_that_is_no_experts_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    experts = made().experts
    assert experts is not None
    with pytest.raises(InputError, match=r"experts\.safetensors cannot be read"):
        experts.load(tmp_path)


def test_a_tokenizer_without_separators_is_refused() -> None:
    with pytest.raises(InputError, match="no token that ends a segment"):
        GuidedExperts(made(None).trunk, FOUR, [])


@torch.no_grad()
def test_exported_graphs_route_as_the_encoder_does(tmp_path: Path) -> None:
    guided = made()
    filled(guided).save(tmp_path)
    guided.save(tmp_path)
    certificate = export(tmp_path)
    assert certificate.min_cosine > 0.9999
    runtime = Runtime(tmp_path, threads=1)
    samples = [Sample(ITEM), Sample("red dress"), Sample("clothes dresses")]
    ids, mask, none = inputs(guided, [s.text for s in samples], [0, 0, 0])
    found = runtime.embed(samples, {})
    assert found == pytest.approx(guided(ids, mask, none).numpy(), abs=1e-5)
    moved = np.abs(found - made(None)(ids, mask, none).numpy()).max(1)
    assert (moved > 1e-3).all(), "without experts the vectors are others"


@torch.no_grad()
def test_the_text_trunk_of_qwen_is_listened_to_as_well() -> None:
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    torch.manual_seed(0)
    trunk = Qwen3VLTextModel(Qwen3VLTextConfig(vocab_size=50, **TEXT, head_dim=16, pad_token_id=0)).eval()
    ids = torch.tensor([[3, 9, 4, 4, 9, 5, 9, 6, 9, 3]])
    before = trunk(input_ids=ids, use_cache=False).last_hidden_state
    experts = GuidedExperts(trunk, FOUR, [9])
    experts.read(ids)
    assert torch.equal(trunk(input_ids=ids, use_cache=False).last_hidden_state, before)
    torch.nn.init.normal_(experts.layers[1].down.weight)
    experts.layers[1].down.weight.view(32, 6, 8)[:, [0, 1, 2, 3, 5]] = 0
    experts.read(ids)
    touched = (trunk(input_ids=ids, use_cache=False).last_hidden_state - before).abs().amax(-1)[0] > 1e-6
    assert touched.nonzero().flatten().tolist() == [2, 3]
    assert experts.usage().shape == (2, 4)


def test_the_catalogue_s_own_tokenizer_has_a_separator() -> None:
    tokenizer = made(None).tokenizer
    ends = set(separator_ids(tokenizer))
    assert sum(i in ends for i in tokenizer.encode(ITEM).ids) == 4
    assert not any(i in ends for i in tokenizer.encode("red dress, 2 / 3").ids)
