"""Picture towers: frozen blocks are computed another way in training, and see the same."""

from __future__ import annotations

import pytest
import torch

from moon_ops.encoder.towers import CACHED, LiteTower

pytest.importorskip("efficientnet_lite_pytorch")


def _tower(frozen: int) -> LiteTower:
    """With weights and statistics drawn by lot, and without stochastic depth, which no two passes share."""
    torch.manual_seed(0)
    tower = LiteTower(frozen)
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    tower.net._global_params = tower.net._global_params._replace(drop_connect_rate=0.0)
    return tower


@pytest.mark.parametrize("size", [64, 96])
def test_frozen_blocks_see_the_same_in_training(size: int) -> None:
    tower, pictures = _tower(11), torch.rand(CACHED + 3, 3, size, size) * 2 - 1
    with torch.no_grad():
        served, trained = tower.eval()(pictures), tower.train()(pictures)
    torch.testing.assert_close(trained, served, rtol=1e-4, atol=1e-4)


def test_what_is_not_frozen_gets_the_same_gradients() -> None:
    tower, pictures = _tower(11), torch.rand(5, 3, 64, 64) * 2 - 1
    gradients = []
    for features in (tower.train()._features, tower.net.extract_features):
        tower.zero_grad()
        features(pictures).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {name.split(".")[2] for name in gradients[0] if "_blocks" in name} == {str(block) for block in range(11, 16)}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_padding_within_convolutions_changes_nothing() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    tower, pictures = _tower(0).eval(), torch.rand(2, 3, 96, 96) * 2 - 1
    plain = EfficientNet.from_name("efficientnet-lite0").eval()
    del plain._fc
    plain.load_state_dict(tower.net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(tower(pictures), plain.extract_features(pictures), rtol=1e-4, atol=1e-4)


def test_weights_of_before_are_read() -> None:
    tower = LiteTower(3)
    assert not [name for name in tower.state_dict() if "pad" in name or "folded" in name]
    LiteTower(0).load_state_dict(tower.state_dict())
