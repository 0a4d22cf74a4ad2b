"""Export an encoder to two ONNX graphs and certify that they compute what it computes.

One graph for the whole model would fix the number of pictures, so there are two: ``tower.onnx`` (pixels uint8 [N, 3, S, S] →
image_tokens [N, T, D]) and ``trunk.onnx`` (input_ids, attention_mask [B, L], image_tokens [N, T, D] → sentence_embedding [B, D]). Batch,
pictures and length are free. The merge of picture tokens into the text is inside the trunk, and so is normalisation.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moon_ops.encoder.model import Encoder
from moon_ops.encoder.tokenizer import separator_ids
from moon_ops.errors import ContractError
from moon_ops.inputs.contract import Contract, Layout, file_sha256
from moon_ops.inputs.golden_pictures import golden_kinds
from moon_ops.inputs.regions import golden_views
from moon_ops.sessions import session

TOWER, TRUNK = "tower.onnx", "trunk.onnx"
GOLDEN = 64  # samples that the certificate compares
PART = 8  # of them at a time: a large encoder's activations of all would need tens of gigabytes


@dataclass(frozen=True)
class Certificate:
    """How far the exported graphs are from the encoder, over ``samples`` mixtures of texts and pictures."""

    contract_id: str
    samples: int
    max_difference: float  # of any component
    min_cosine: float  # of any pair of vectors
    rank_flips: int  # samples whose nearest other sample is another one


class _Tower(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.picture_tokens(pixels)


class _Trunk(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> Tensor:
        return self.encoder.embed(input_ids, attention_mask, image_tokens)


def export(directory: Path, *, parity_floor: float = 0.999) -> Certificate:
    """Write both graphs, ``contract.json`` and ``certificate.json`` into a saved encoder's directory.

    Raises :class:`ContractError` when the least cosine between eager and exported vectors is below ``parity_floor``; then there is no
    contract, and nothing can be embedded with the graphs.
    """
    encoder = Encoder.load(directory).eval()
    (directory / "contract.json").unlink(missing_ok=True)
    for old in directory.glob("*.onnx*"):
        old.unlink()
    _write_graphs(encoder, directory)
    contract = Contract(
        family=encoder.family,
        dim=encoder.dim,
        layout=encoder.layout,
        weights=file_sha256(directory / "model.safetensors"),
        tokenizer=file_sha256(directory / "tokenizer.json"),
        graphs={
            file.name: file_sha256(file) for file in sorted(directory.glob("*.onnx*"))
        },  # large ones keep weights in a file beside them
        golden_pixels=golden_views(encoder.layout.picture_size, encoder.layout.core_region),
        golden_kinds=golden_kinds(),
    )
    certificate = certify(encoder, directory, contract.contract_id)
    (directory / "certificate.json").write_text(json.dumps(asdict(certificate), indent=2) + "\n")
    if not certificate.min_cosine >= parity_floor:
        raise ContractError(
            f"the exported graphs differ from the encoder: least cosine {certificate.min_cosine:.6f} is below {parity_floor}",
            action="see certificate.json; nothing was released",
        )
    contract.save(directory)
    return certificate


def _write_graphs(encoder: Encoder, directory: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    ids, mask, pixels = _golden(encoder, samples=4, seed=0)
    with torch.no_grad(), quiet_exporter():
        tokens = encoder.picture_tokens(pixels)
        graphs = (
            (TOWER, _Tower(encoder), (pixels,), ({0: dynamic},), ["pixels"], ["image_tokens"]),
            (
                TRUNK,
                _Trunk(encoder),
                (ids, mask, tokens),
                ({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic}),
                ["input_ids", "attention_mask", "image_tokens"],
                ["sentence_embedding"],
            ),
        )
        for name, module, inputs, shapes, names, outputs in graphs:
            program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=outputs, verbose=False
            )
            assert program is not None, "dynamo=True always returns a program"
            program.save(directory / name, external_data=False)


def certify(encoder: Encoder, directory: Path, contract_id: str) -> Certificate:
    """Compare eager and ONNX Runtime on texts of many lengths with no, one and several pictures."""
    tower, trunk = (session(directory / name) for name in (TOWER, TRUNK))
    by_both = []
    for ids, mask, pixels in _parts(*_golden(encoder, samples=GOLDEN, seed=1), encoder.layout):
        with torch.no_grad():
            by_torch = encoder(ids, mask, pixels).numpy()
            tokens = tower.run(None, {"pixels": pixels.numpy()})[0] if len(pixels) else encoder.tokens_or_none(pixels).numpy()
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "image_tokens": tokens}
        by_both.append((by_torch, np.asarray(trunk.run(None, feeds)[0])))
    eager, exported = (np.concatenate(side) for side in zip(*by_both, strict=True))
    return Certificate(
        contract_id,
        samples=len(eager),
        max_difference=float(np.abs(eager - exported).max()),
        min_cosine=float((eager * exported).sum(1).min()),
        rank_flips=int((_nearest(eager) != _nearest(exported)).sum()),
    )


def _nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each row's nearest other row."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(1)


def _golden(encoder: Encoder, samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded samples: texts of 1 … max tokens, and in turn none to max pictures each (none of them empty)."""
    generator = np.random.default_rng(seed)
    layout = encoder.layout
    words = [i for i in range(encoder.tokenizer.get_vocab_size()) if i not in _reserved(layout)]
    texts = [generator.choice(words, size=1 + n % layout.max_text_tokens).tolist() for n in range(samples)]
    if encoder.experts is not None:  # words alone would be one segment, without category and attributes
        texts = [[w if at % 5 < 4 else separator_ids(encoder.tokenizer)[0] for at, w in enumerate(t)] for t in texts]
    pictures = [n % (layout.max_pictures + 1) for n in range(samples)]
    ids, mask = layout.batch(texts, pictures)
    size = layout.picture_size
    coarse = generator.integers(0, 256, (sum(pictures) * layout.views, 3, 4, 4)).astype(np.float32)
    pixels = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bilinear").to(torch.uint8)
    return torch.from_numpy(ids), torch.from_numpy(mask), pixels


def _parts(ids: Tensor, mask: Tensor, pixels: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``PART`` samples at a time, each with its own pictures."""
    pictures = (ids == layout.image_token_id).sum(1) // layout.tokens_per_picture
    start = pictures.cumsum(0) - pictures
    for at in range(0, len(ids), PART):
        rows = slice(at, at + PART)
        yield ids[rows], mask[rows], pixels[start[at] : start[at] + pictures[rows].sum()]


def _reserved(layout: Layout) -> set[int]:
    return {layout.image_token_id, layout.pad_token_id, *layout.before, *layout.after}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter reports its passes; a failure still raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def check_graphs(directory: Path) -> None:
    """Structural check of both graphs by ONNX itself."""
    for name in (TOWER, TRUNK):
        onnx.checker.check_model(str(directory / name))
