"""What each stage minimises: modules that turn a batch into vectors or logits, and functions that turn those into a loss.

B pairs, M items, D dimensions. A loss that is made of vectors alone lets gradients be cached: see :mod:`moon_ops.encoder.fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from moon_ops.encoder.batches import Inputs
from moon_ops.encoder.experts import GuidedExperts
from moon_ops.encoder.losses import circle, info_nce, nested
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.negatives import Queue, gathered, gathered_numbers, gathered_uneven
from moon_ops.encoder.positives import Asked
from moon_ops.recipes.encoder import Stage2a, Stage2b

MAX_SCALE = 100.0  # of the logits, as in CLIP: beyond it one batch can throw the training off
HARDNESS = (-1.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # edges of the histogram of negatives' similarities


class Sides(nn.Module):
    """The encoder as training calls it: the sides of a batch, with one pass of all their pictures through the tower."""

    def __init__(self, encoder: Encoder, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, held below ``MAX_SCALE``."""
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()

    def forward(self, sides: list[Inputs]) -> list[Tensor]:
        """Unit vectors [R, D] of each side, in float32, and last the scale: pictures of all sides share the tower's batch statistics.

        Without sides the scale alone: see :func:`moon_ops.encoder.fit.cached`.
        """
        if not sides:
            return [self._beside()]
        pixels = torch.cat([side.pixels for side in sides])
        with torch.no_grad():  # itself, as in CLIP: a number beyond the limit has no gradient and would stay there
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        with sdpa_kernel(SDPBackend.MATH) if pixels.device.type == "cpu" else nullcontext():  # a CPU's fused attention is slow backwards
            return [*self._embedded(sides, pixels), self.scale]

    def _beside(self) -> Tensor:
        """The scale, from a pass without rows: other processes have more of them, and their towers may wait for this one's."""
        size = self.encoder.layout.picture_size
        nothing = torch.zeros((0, 3, size, size), dtype=torch.uint8, device=self.log_scale.device)
        return self.scale + self.encoder.tokens_or_none(nothing).sum() * 0.0

    def _embedded(self, sides: list[Inputs], pixels: Tensor) -> list[Tensor]:
        tokens = self.encoder.tokens_or_none(pixels)
        out, at = [], 0
        for side in sides:
            count = len(side.pixels)
            own = tokens[at : at + count] if count else tokens[:1] * 0
            out.append(self.encoder.embed(side.input_ids, side.attention_mask, own).float())
            at += count
        return out


@dataclass
class Found:
    """A contrastive loss with what is worth knowing about its negatives."""

    loss: Tensor
    metrics: dict[str, float]


def balanced(
    experts: GuidedExperts | None, made: Callable[[], tuple[Found, list[Callable[[], Tensor]]]]
) -> tuple[Found, list[Callable[[], Tensor]]]:
    """What ``made`` gives, a loss and the passes that bring its gradient, with the experts' balance over all sides added to each pass."""
    if experts is None or not experts.recipe.balance:
        return made()
    with experts.gathering():
        found, passes = made()

    def one(run: Callable[[], Tensor]) -> Tensor:
        with experts.gathering() if len(passes) > 1 else nullcontext():  # of one pass, the model has run already
            loss = run()
        if not experts.busy:
            return loss  # a pass without rows: other processes have some
        uneven = experts.balance_loss()
        found.metrics["balance"] = float(uneven.detach())
        return loss + experts.recipe.balance / len(passes) * uneven

    return found, [partial(one, run) for run in passes]


def behaviour_loss(
    shown: tuple[Tensor, Tensor],
    vectors: dict[str, Tensor],
    scale: Tensor,
    stage: Stage2a,
    prefixes: tuple[int, ...],
    asked: Asked | None = None,
) -> Found:
    """Stage 2a: InfoNCE over the pairs of all processes, or MIM's L = q2img + q2item + q2txt, and within-product alignment.

    ``shown`` are, of this process's pairs, the product numbers [B] and whether the item has a picture [B]: one that has none has no
    picture to be aligned with. What is known to answer who is ``asked`` is no negative; without it only a pair's own product is none.
    """
    product, pictured = (gathered_numbers(numbers.long()) for numbers in shown)
    seen = torch.nonzero(pictured).flatten()
    every = {name: gathered(v) for name, v in vectors.items()}
    same = product[:, None] == product[None, :]
    answers = same if asked is None else same | asked.positives.mask(gathered_numbers(asked.asker), product)
    everywhere = torch.arange(len(product), device=product.device)

    def nce(query: str, item: str, rows: Tensor = everywhere) -> Tensor:
        target, masked = everywhere[: len(rows)], (answers if query == "query" else same)[rows][:, rows]
        return nested(lambda q, i: info_nce(q, i, target, scale, masked), every[query][rows], every[item][rows], prefixes)

    loss = nce("query", "item")
    if stage.loss == "mim":
        loss = loss + nce("query", "item_text") + (nce("query", "item_image", seen) if len(seen) else 0.0)
    if stage.within_product and len(seen):
        loss = loss + stage.within_product * nce("item_image", "item_text", seen)
    return Found(loss, _negatives(every["query"], every["item"], answers))


def refined_loss(
    products: tuple[Tensor, Tensor],
    vectors: dict[str, Tensor],
    scale: Tensor,
    queue: Queue | None,
    stage: Stage2b,
    prefixes: tuple[int, ...],
    asked: Asked | None = None,
) -> Found:
    """Stage 2b: circle loss against the batch, other processes (spatial), mined hard negatives, and the queue (temporal).

    ``products`` are the numbers of this process's pairs [B] and of its hard negatives, which those of other processes join.
    ``asked`` as in stage 2a.
    """
    own, hard = products
    spread = gathered if stage.spatial else (lambda v: v)
    numbers = gathered_numbers if stage.spatial else (lambda n: n)
    query, item = spread(vectors["query"]), spread(vectors["item"])
    product = numbers(own)
    items, known = [item], [product]
    if stage.hard_negatives:
        found = vectors.get("negative", vectors["item"][:0])
        found, hard = gathered_uneven(found, hard) if stage.spatial else (found, hard)
        items.append(found)
        known.append(hard)
    if queue is not None and len(queue.vectors):
        items.append(queue.vectors.to(item))
        known.append(queue.product.to(product))
    every, of = torch.cat(items), torch.cat(known)
    same = product[:, None] == of[None, :]
    if asked is not None:
        same = same | asked.positives.mask(numbers(asked.asker), of)
    target = torch.arange(len(query), device=query.device)

    def one(q: Tensor, i: Tensor) -> Tensor:
        if stage.loss == "circle":
            return circle(q, i, target, same, margin=stage.margin, scale=stage.scale, both_ways=stage.both_ways)
        return info_nce(q, i, target, scale, same)

    return Found(nested(one, query, every, prefixes), _negatives(query, every, same))


@torch.no_grad()
def _negatives(query: Tensor, item: Tensor, same: Tensor) -> dict[str, float]:
    """Share of masked (false) negatives, and how many negatives lie in which band of similarity."""
    similarity = query @ item.T
    own = torch.zeros_like(same)
    own.fill_diagonal_(True)
    others = ~own
    negatives = similarity[others & ~same].cpu()
    counts = torch.histogram(negatives.clamp(-1, 1), torch.tensor(HARDNESS)).hist
    total = max(float(counts.sum()), 1.0)
    bands = {f"hardness/{low:+.1f}": float(count) / total for low, count in zip(HARDNESS, counts, strict=False)}
    return {"false_negatives": float((same & others).sum() / others.sum().clamp(min=1)), **bands}
