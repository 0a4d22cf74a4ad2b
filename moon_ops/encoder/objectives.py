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
from moon_ops.encoder.losses import Mask, circle, info_nce, nested, summed
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.negatives import Queue, gathered, gathered_numbers, gathered_uneven, own_rows
from moon_ops.encoder.positives import Asked
from moon_ops.recipes.encoder import Stage2a, Stage2b

MAX_SCALE = 100.0  # of the logits, as in CLIP: beyond it one batch can throw the training off
HARDNESS = (-1.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # edges of the histogram of negatives' similarities


class Sides(nn.Module):
    """The encoder as training calls it: the sides of a batch, with one pass of all their pictures through the tower."""

    def __init__(self, encoder: Encoder, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # [1]: what has no dimension cannot be sharded
        self.even = False  # whether each pass runs all that any process runs: sharded, they wait for each other in every block

    @property
    def scale(self) -> Tensor:
        """1 / temperature, held below ``MAX_SCALE``."""
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()[0]

    @torch.no_grad()
    def hold(self) -> None:
        """Bring the scale back below its limit, as in CLIP: a number beyond it has no gradient and would stay there."""
        self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def forward(self, sides: list[Inputs]) -> list[Tensor]:
        """Unit vectors [R, D] of each side, in float32, and last the scale: pictures of all sides share the tower's batch statistics.

        A side without rows has vectors [0, D]. The scale hangs on all that was run: other processes may have rows there.
        """
        pixels = torch.cat([side.pixels for side in sides])
        with sdpa_kernel(SDPBackend.MATH) if pixels.device.type == "cpu" else nullcontext():  # a CPU's fused attention is slow backwards
            return self._embedded(sides, self.encoder.tokens_or_none(pixels, always=self.even))

    def _embedded(self, sides: list[Inputs], tokens: Tensor) -> list[Tensor]:
        out, at, scale = [], 0, self.scale
        if not any(map(len, sides)):
            scale = scale + tokens.sum() * 0.0
        for side in sides:
            shown, count = self._filled(side), len(side.pixels)
            own = tokens[at : at + count] if count else tokens[:1] * 0
            if len(shown):
                vectors = self.encoder.embed(shown.input_ids, shown.attention_mask, own).float()
                scale = scale if len(side) else scale + vectors.sum() * 0.0
            else:
                vectors = tokens.new_zeros((0, self.encoder.dim), dtype=torch.float32)
            out.append(vectors[: len(side)])
            at += count
        return [*out, scale]

    def _filled(self, side: Inputs) -> Inputs:
        """The side, or in its place one row with one token of padding, where others have rows and this process has none."""
        if len(side) or not self.even:
            return side
        one = torch.ones((1, 1), dtype=torch.int64, device=side.input_ids.device)
        return Inputs(one * self.encoder.layout.pad_token_id, one, side.pixels, (0,))


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
    The mean of the losses over all processes is the loss of all pairs.
    """
    product, pictured = (gathered_numbers(numbers.long()) for numbers in shown)
    seen = torch.nonzero(pictured).flatten()
    every = {name: gathered(v) for name, v in vectors.items()}
    own, parts = own_rows(len(vectors["query"]), product.device)
    same = alike(product, product)
    answers = same if asked is None else alike(product, product, asked, gathered_numbers(asked.asker))
    everywhere = torch.arange(len(product), device=product.device)

    def nce(query: str, item: str, rows: Tensor = everywhere) -> Tensor:
        known = answers if query == "query" else same
        judged = torch.nonzero(torch.isin(rows, own)).flatten()

        def loss(q: Tensor, i: Tensor) -> Tensor:
            return parts * info_nce(q, i, everywhere[: len(rows)], scale, lambda r, c: known(rows[r], rows[c]), judged)

        return nested(loss, every[query][rows], every[item][rows], prefixes)

    loss = nce("query", "item")
    if stage.loss == "mim":
        loss = loss + nce("query", "item_text") + (nce("query", "item_image", seen) if len(seen) else 0.0)
    if stage.within_product and len(seen):
        loss = loss + stage.within_product * nce("item_image", "item_text", seen)
    return Found(loss, _negatives(every["query"], every["item"], answers, own))


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
    ``asked`` as in stage 2a. The mean of the losses over all processes is the loss of all pairs.
    """
    own, hard = products
    spread = gathered if stage.spatial else (lambda v: v)
    numbers = gathered_numbers if stage.spatial else (lambda n: n)
    query, item = spread(vectors["query"]), spread(vectors["item"])
    product = numbers(own)
    judged, parts = own_rows(len(own), own.device) if stage.spatial else (torch.arange(len(own), device=own.device), 1)
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
    same = alike(product, of) if asked is None else alike(product, of, asked, numbers(asked.asker))
    target = torch.arange(len(query), device=query.device)

    def one(q: Tensor, i: Tensor) -> Tensor:
        if stage.loss == "circle":
            found = circle(q, i, target, same, margin=stage.margin, scale=stage.scale, both_ways=stage.both_ways, rows=judged)
            return parts * found
        return parts * info_nce(q, i, target, scale, same, judged)

    return Found(nested(one, query, every, prefixes), _negatives(query, every, same, judged))


def alike(product: Tensor, of: Tensor, asked: Asked | None = None, asker: Tensor | None = None) -> Mask:
    """Which items, of the products ``of`` [M], are no negatives of which pairs, of the products ``product`` [B]; see :class:`Positives`."""

    def mask(rows: Tensor, columns: Tensor) -> Tensor:
        same = product[rows][:, None] == of[columns][None, :]
        if asked is None or asker is None:
            return same
        return same | asked.positives.mask(asker[rows], of[columns])

    return mask


@torch.no_grad()
def _negatives(query: Tensor, item: Tensor, same: Mask, rows: Tensor) -> dict[str, float]:
    """Of this process's pairs: the share of masked (false) negatives, and how many negatives lie in which band of similarity."""
    edges, columns = torch.tensor(HARDNESS, device=item.device), torch.arange(len(item), device=item.device)

    def counted(some: Tensor) -> Tensor:
        masked, own = same(some, columns), columns[None, :] == some[:, None]
        negatives = (query[some] @ item.T)[~(masked | own)].clamp(-1, 1)
        bands = torch.bincount(torch.bucketize(negatives, edges[1:-1], right=True), minlength=len(HARDNESS) - 1)
        return torch.cat([bands, (masked & ~own).sum()[None]])

    *counts, hidden = summed(counted, rows, len(item)).tolist()
    total, others = max(sum(counts), 1), max(len(rows) * (len(item) - 1), 1)
    bands = {f"hardness/{low:+.1f}": count / total for low, count in zip(HARDNESS, counts, strict=False)}
    return {"false_negatives": hidden / others, **bands}
