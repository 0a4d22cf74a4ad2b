"""What of a checkpoint is trained: all of it, what is not frozen, or adapters of low rank beside its linear layers (LoRA, 2106.09685).

The package peft makes the adapters. They are merged into the weights whenever an encoder is saved, so nothing after the training knows of
them: export, contract and serving are those of an encoder that was trained whole. B [out, rank] starts at zero: at first the encoder is
the checkpoint. This module knows nothing of losses and optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe, Frozen, Lora

NAME = "default"  # peft's, of the only adapter
MARK = "lora_"  # in the names of all adapters' parameters


def restrain(encoder: Any, recipe: EncoderRecipe) -> None:
    """Leave to the optimizers what the recipe trains of the encoder's model; its experts are trained always.

    Raises :class:`InputError` where nothing would be left, for more blocks than there are, or without the package peft.
    """
    tower = encoder.parts.tower(encoder.model)
    still = set(_modules(_still(encoder.trunk, tower, recipe.frozen)) if recipe.frozen else ())
    for module in still:
        module.requires_grad_(False)
    if recipe.lora is not None:
        _adapt(encoder.model, _beside(encoder, tower, recipe.lora, still), recipe.lora)
    if not any(p.requires_grad for p in encoder.parameters()):
        raise InputError(f"[frozen] of {recipe.name} leaves nothing to be trained", action="freeze fewer blocks, or add [lora]")


def _still(trunk: Any, tower: tuple[list[Any], ...], frozen: Frozen) -> Iterator[nn.Module]:
    """The modules that are not trained."""
    embeddings = [trunk.get_input_embeddings()]
    text = (embeddings, list(trunk.layers), [trunk.norm])
    for name, count, (before, blocks, after) in (("tower", frozen.tower, tower[:3]), ("text", frozen.text, text)):
        if count > len(blocks):
            raise InputError(
                f"frozen.{name} = {count}, but the checkpoint has {len(blocks)} blocks there", action="freeze fewer, or -1 for all of them"
            )
        yield from (*before, *blocks[: len(blocks) if count < 0 else count]) if count else ()
        yield from after if count < 0 else ()
    yield from embeddings if frozen.embeddings else ()


def _beside(encoder: Any, tower: tuple[list[Any], ...], lora: Lora, still: set[nn.Module]) -> list[str]:
    """The names of the linear layers that get adapters."""
    _, blocks, _, joint = tower
    text = list(encoder.trunk.layers) if lora.parts != "tower" else []
    seen = [*blocks, *(joint if lora.layers == "all" else ())] if lora.parts != "text" else []
    wanted = set(_modules((*text, *seen))) - still
    linear = [name for name, module in encoder.model.named_modules() if module in wanted and isinstance(module, nn.Linear)]
    return [name for name in linear if lora.layers == "all" or "attn" in name]


def _modules(roots: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for root in roots:
        yield from root.modules()


def _adapt(model: nn.Module, names: list[str], lora: Lora) -> None:
    """Freeze the model and put adapters beside the layers of these names."""
    if not names:
        raise InputError("[lora] finds no layer: all that it names is frozen", action="freeze fewer blocks, or name other parts")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as absent:
        raise InputError(f"[lora] needs the package peft ({absent})", action='pip install "moon_ops[lora]"') from absent
    # without dropout: with cached gradients a batch is read twice, and must be the same both times
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names), model, NAME)


def merged(model: nn.Module) -> dict[str, Tensor] | None:
    """The model's weights by the names that they had without adapters, with these merged into them; None where there are none."""
    beside: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    if not beside:
        return None
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if MARK not in name}
    for name, layer in beside.items():
        weight = layer.base_layer.weight.detach()
        state[f"{name}.weight"] = (weight + layer.get_delta_weight(NAME).detach().to(weight.dtype)).cpu()
    return state


def own_count(model: nn.Module) -> int:
    """How many parameters the model has without adapters."""
    return sum(p.numel() for name, p in model.named_parameters() if MARK not in name)
