"""Run an exported encoder with ONNX Runtime: the one inference path, for bulk production, for evaluation and for serving.

Reads an encoder's directory (graphs, tokenizer, contract) and nothing of ours that made it. B samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moon_ops.errors import ContractError, InputError
from moon_ops.lake.contract import Contract, Sample, file_sha256
from moon_ops.lake.regions import golden_views

BATCH = 32  # samples per forward: beyond it a CPU gains nothing and memory grows


class Runtime:
    """An encoder ready to embed. Opening one checks every file against the contract."""

    def __init__(self, directory: Path, *, threads: int = 2) -> None:
        self.contract = Contract.load(directory)
        _verify(self.contract, directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # "<image>" in a title is a word, not the place of a picture
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if _has_gpu() else ["CPUExecutionProvider"]
        self._tower, self._trunk = (ort.InferenceSession(directory / n, options, providers=providers) for n in ("tower.onnx", "trunk.onnx"))
        slots = next(given for given in self._trunk.get_inputs() if given.name == "image_tokens")
        self._token_width = int(slots.shape[-1])  # more than D where a family feeds several layers

    @property
    def contract_id(self) -> str:
        """The contract of every vector made here."""
        return self.contract.contract_id

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.contract.dim

    def embed(self, samples: Sequence[Sample], pixels: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit vectors [B, D]; ``pixels`` maps every image id of the samples to uint8 [V, 3, S, S] of its V views
        (:func:`moon_ops.lake.regions.views`), or [3, S, S] where the encoder reads one.

        Samples are run in batches of similar length, so that short texts do not pay for long ones; the order returned is the order given.
        """
        texts = [e.ids for e in self.tokenizer.encode_batch([s.text for s in samples], add_special_tokens=False)]
        pictures = [[self._views(pixels[i]) for i in s.image_ids[: self.contract.layout.max_pictures]] for s in samples]
        lengths = [len(p) * 1000 + min(len(t), 999) for t, p in zip(texts, pictures, strict=True)]
        order = np.argsort(lengths, kind="stable")
        out = np.empty((len(samples), self.dim), np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            out[rows] = self._forward([texts[r] for r in rows], [pictures[r] for r in rows])
        return out

    def _views(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [V, 3, S, S] of one picture; :class:`InputError` for another shape, which would take a neighbour's place."""
        layout = self.contract.layout
        wanted = (layout.views, 3, layout.picture_size, layout.picture_size)
        found = pixels[None] if pixels.ndim == 3 else pixels
        if found.shape != wanted:
            raise InputError(
                f"a picture's pixels are {list(pixels.shape)}, but contract {self.contract_id} reads {list(wanted)}",
                action=f"make them with moon_ops.lake.regions.views(picture, {layout.picture_size}, {layout.core_region!r})",
            )
        return found

    def _forward(self, texts: list[list[int]], pictures: list[list[NDArray[np.uint8]]]) -> NDArray[np.float32]:
        layout = self.contract.layout
        ids, mask = layout.batch(texts, [len(p) for p in pictures])
        flat = [p for several in pictures for p in several]
        if flat:
            tokens = self._tower.run(None, {"pixels": np.concatenate(flat)})[0]
        else:
            tokens = np.zeros((1, layout.tokens_per_picture, self._token_width), np.float32)
        return np.asarray(self._trunk.run(None, {"input_ids": ids, "attention_mask": mask, "image_tokens": tokens})[0])


def _has_gpu() -> bool:
    """Whether a CUDA provider would load: the GPU wheel offers it on every machine, and complains where there is no driver."""
    return "CUDAExecutionProvider" in ort.get_available_providers() and any(Path("/dev").glob("nvidia[0-9]*"))


def _verify(contract: Contract, directory: Path) -> None:
    """Refuse a directory whose files are not the ones that the contract was made of."""
    expected = {"tokenizer.json": contract.tokenizer, **contract.graphs}
    for name, sha in expected.items():
        path = directory / name
        found = file_sha256(path) if path.is_file() else "nothing"
        if found != sha:
            raise ContractError(
                f"{path} has sha256 {found[:12]}, but contract {contract.contract_id} is for {sha[:12]}",
                action="export or download the encoder again",
            )
    made = golden_views(contract.layout.picture_size, contract.layout.core_region)
    if made != contract.golden_pixels:
        raise ContractError(
            f"pictures are resized to pixels {made[:12]}, but contract {contract.contract_id} is for {contract.golden_pixels[:12]}",
            action="install the Pillow version in constraints.txt, or export the encoder again",
        )
