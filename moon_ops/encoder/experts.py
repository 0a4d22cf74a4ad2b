"""Guided mixture of experts in the text trunk (MOON, arXiv 2508.11999): some experts are routed to, two are always on for their tokens.

Beside each layer's MLP stand a router with ``routed`` small experts, of which a token takes ``chosen``, and one expert each for the
tokens of an item's category and of its attributes. Where those stand is read from the item's text, whose five segments have their
places (:func:`moon_ops.inputs.contract.item_sample`). All experts start at nothing: an encoder that is given some is the same at first.
Widths and numbers of the paper's experts: unknown. A query has no segments; with ``queries`` (ours) its tokens take part by where the
catalogue has them: a token that stands in the category in a third of its places is a third of a category token.

B samples, L tokens, D dimensions, E routed experts, M = E + 2 with the two guided ones, W an expert's width. This module knows nothing of
pictures and losses, and does not know the trunk's parameters: it listens to the trunk's MLPs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops.errors import ContractError, InputError
from moon_ops.recipes.encoder import Experts

FILE = "experts.safetensors"
Routed = tuple[Tensor, Tensor, Tensor]  # summed probabilities [E], summed shares [E], number of tokens
GUIDED = (1, 3)  # the segments that have an expert of their own: category and attributes


class LayerExperts(nn.Module):
    """The experts of one layer, as one wide SwiGLU whose M blocks of W columns are weighted token by token."""

    def __init__(self, dim: int, recipe: Experts) -> None:
        super().__init__()
        self.chosen, self.width = recipe.chosen, recipe.width
        inside = (recipe.routed + len(GUIDED)) * recipe.width
        self.router = nn.Linear(dim, recipe.routed, bias=False)
        self.gate = nn.Linear(dim, inside, bias=False)
        self.up = nn.Linear(dim, inside, bias=False)
        self.down = nn.Linear(inside, dim, bias=False)
        for part in (self.router, self.gate, self.up):
            nn.init.normal_(part.weight, std=0.02)
        nn.init.zeros_(self.down.weight)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each routed expert's probability, and 1 where it is among the ``chosen``, both [B, L, E], of ``x`` [B, L, D]."""
        probability = self.router(x).float().softmax(-1)
        best = probability.topk(self.chosen, dim=-1).indices
        return probability, torch.zeros_like(probability).scatter(-1, best, 1.0)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]: the sum of the experts' outputs, by ``weights`` [B, L, M]."""
        inner = F.silu(self.gate(x)) * self.up(x)  # [B, L, M * W]
        blocks = inner.unflatten(-1, (-1, self.width)) * weights[..., None].to(inner.dtype)
        return self.down(blocks.flatten(-2))


class GuidedExperts(nn.Module):
    """The experts of all layers of a trunk; :meth:`read` comes before each forward of the trunk and says what its tokens are."""

    separators: Tensor
    leaning: Tensor  # [V, 2], with ``queries``: which share of a token's places is in a category, and in attributes

    def __init__(self, trunk: Any, recipe: Experts, separator_ids: list[int]) -> None:
        super().__init__()
        if not separator_ids:
            raise InputError(
                "the tokenizer has no token that ends a segment of an item's text, so experts could not be guided",
                action="leave [experts] out of the recipe, or use a tokenizer that knows '|'",
            )
        self.recipe = recipe
        self.pad = getattr(trunk.config, "pad_token_id", None)
        self.register_buffer("separators", torch.tensor(separator_ids), persistent=False)
        if recipe.queries:
            self.register_buffer("leaning", torch.zeros(int(trunk.config.vocab_size), len(GUIDED)))
        self.layers = nn.ModuleList(LayerExperts(int(trunk.config.hidden_size), recipe) for _ in trunk.layers)
        self._read: list[tuple[Tensor, Tensor]] = []  # of the batch that the trunk runs on: kinds [B, L, 2], and where there is no padding
        self._routed: dict[int, list[Routed]] = {}  # layer → what each forward since the first read did
        self._gathering = False
        for number, layer in enumerate(trunk.layers):
            layer.mlp.register_forward_hook(partial(self._beside, number))  # the trunk keeps its shape, and its checkpoint

    def read(self, input_ids: Tensor) -> None:
        """Find the category and attribute tokens of ``input_ids`` [B, L]; a query has one segment, so it has neither unless the recipe has
        ``queries``.
        """
        ends = (input_ids[..., None] == self.separators).any(-1)  # [B, L]
        segment = ends.long().cumsum(1)
        kinds = torch.stack([(segment == guided) & ~ends for guided in GUIDED], -1)
        if self.recipe.queries:
            kinds = torch.where(ends.any(1)[:, None, None], kinds.to(self.leaning.dtype), self.leaning[input_ids])
        real = torch.ones_like(ends) if self.pad is None else input_ids != self.pad
        self._read[:] = [(kinds, real)]
        if not self._gathering:
            self._routed.clear()

    def lean(self, texts: Iterable[Sequence[int]]) -> None:
        """Learn from the token ids of items' texts which share of each token's places lies in a category, and in attributes."""
        counts, ends = np.zeros((len(self.leaning), 1 + len(GUIDED))), self.separators.tolist()
        for ids in map(np.asarray, texts):
            segment = np.isin(ids, ends).cumsum()
            inside = ~np.isin(ids, ends)
            if inside.all():
                continue  # no item's text
            np.add.at(counts[:, 0], ids[inside], 1)
            for place, guided in enumerate(GUIDED, 1):
                np.add.at(counts[:, place], ids[inside & (segment == guided)], 1)
        self.leaning.copy_(torch.from_numpy(counts[:, 1:] / counts[:, :1].clip(min=1)))

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Within it, figures are of all forwards since it began, not of the last alone: of all sides of a batch."""
        self._routed.clear()
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False

    def _beside(self, number: int, mlp: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        """What an MLP put out, and the experts' sum: called by torch after each layer's MLP."""
        assert self._read, "read(input_ids) comes before the trunk's forward"
        kinds, real = self._read[0]
        x: Tensor = args[0]
        experts: Any = self.layers[number]
        probability, mask = experts.route(x)
        if not torch.compiler.is_exporting():
            weight = real[..., None].to(probability.dtype)
            of = (probability * weight).sum((0, 1)), (mask * weight).sum((0, 1)) / self.recipe.chosen, weight.sum()
            self._routed.setdefault(number, []).append(of)
        weights = torch.cat([probability * mask, kinds.to(probability.dtype)], -1)  # [B, L, M]
        return output + experts(x, weights).to(output.dtype)

    @property
    def busy(self) -> bool:
        """Whether there has been a forward that figures could be of."""
        return len(self._routed) == len(self.layers)

    def usage(self) -> Tensor:
        """Share [layers, E] of the last forward's tokens, without padding, that each routed expert took; a layer's sum is 1."""
        return torch.stack([share.detach() for _, share in self._means()])

    def balance_loss(self) -> Tensor:
        """Auxiliary loss of the last forward, the mean over layers (Switch Transformers, 2101.03961): 1 where all experts are used alike.

        Differentiable through the probabilities. Within :meth:`gathering` it is that of all forwards.
        """
        return torch.stack([self.recipe.routed * (probability * share).sum() for probability, share in self._means()]).mean()

    def _means(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer the mean probability [E] and the mean share [E] over all tokens."""
        assert self.busy, "there has been no forward since read(input_ids)"
        summed = [[sum(part[1:], part[0]) for part in zip(*self._routed[number], strict=True)] for number in range(len(self.layers))]
        return [(probability / tokens.clamp(min=1), share / tokens.clamp(min=1)) for probability, share, tokens in summed]

    def save(self, directory: Path) -> None:
        """Write ``experts.safetensors``."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote; :class:`InputError` without it, :class:`ContractError` if it is of another recipe or trunk."""
        try:
            saved = load_file(directory / FILE)
        except (OSError, SafetensorError) as broken:
            raise InputError(f"{directory / FILE} cannot be read ({broken})", action="bring the whole directory again") from broken
        own = self.state_dict()
        for name in sorted(own.keys() | saved.keys()):
            wanted, found = (list(state[name].shape) if name in state else "nothing" for state in (own, saved))
            if wanted != found:
                raise ContractError(
                    f"{directory / FILE} has {name} of shape {found}, but {self.recipe} needs {wanted}: they are another encoder's",
                    action="bring the whole directory again, as it was saved",
                )
        self.load_state_dict(saved)
