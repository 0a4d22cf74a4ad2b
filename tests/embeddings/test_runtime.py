"""The one inference path: a vector depends on its sample alone, and files that are not the contract's are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings.runtime import BATCH, Runtime
from moon_ops.errors import ContractError, InputError
from moon_ops.lake.contract import Contract, Sample

SAMPLES = {
    "text": Sample("red dress"),
    "long text": Sample("a dotted summer dress of cotton with long sleeves and a round neck for warm evenings by the sea"),
    "picture": Sample("", ("dots",)),
    "text and picture": Sample("red dress", ("dots",)),
    "two pictures": Sample("red dress", ("dots", "stripes")),
    "two pictures, no text": Sample("", ("stripes", "dots")),
}


@pytest.fixture(scope="module")
def pixels(runtime: Runtime) -> dict[str, NDArray[np.uint8]]:
    size = runtime.contract.layout.picture_size
    y, x = np.mgrid[:size, :size]
    drawn = {"dots": (x % 8 < 4) & (y % 8 < 4), "stripes": x % 6 < 3, "plain": x < 0}
    return {name: np.stack([mask * 200, mask * 90 + 40, mask * 20]).astype(np.uint8) for name, mask in drawn.items()}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_vector_does_not_depend_on_its_batch(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]], kind: str) -> None:
    alone = runtime.embed([SAMPLES[kind]], pixels)
    among = runtime.embed(list(SAMPLES.values()), pixels)[list(SAMPLES).index(kind)]
    assert alone.shape == (1, runtime.dim)
    assert alone.dtype == np.float32
    assert np.linalg.norm(alone[0]) == pytest.approx(1.0, abs=1e-5)
    assert alone[0] @ among > 0.9999


def test_more_samples_than_a_forward_holds_come_back_in_their_order(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]]) -> None:
    several = [list(SAMPLES.values())[n % len(SAMPLES)] for n in range(2 * BATCH + 5)]
    single = runtime.embed(list(SAMPLES.values()), pixels)
    expected = single[np.arange(len(several)) % len(SAMPLES)]
    assert (runtime.embed(several, pixels) * expected).sum(1).min() > 0.9999


def test_every_part_of_a_sample_counts(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]]) -> None:
    vectors = runtime.embed(list(SAMPLES.values()), pixels)
    cosines = vectors @ vectors.T
    assert cosines[~np.eye(len(SAMPLES), dtype=bool)].max() < 0.999
    other = runtime.embed([Sample("red dress", ("plain",))], pixels)[0]
    assert other @ vectors[list(SAMPLES).index("text and picture")] < 0.999


def test_pictures_beyond_the_most_are_not_read(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]]) -> None:
    assert runtime.contract.layout.max_pictures == 2
    two, three = Sample("mug", ("dots", "stripes")), Sample("mug", ("dots", "stripes", "not even there"))
    left, right = runtime.embed([two, three], pixels)
    assert left @ right > 0.9999


def test_no_samples_are_no_vectors(runtime: Runtime) -> None:
    assert runtime.embed([], {}).shape == (0, runtime.dim)


def test_neither_text_nor_picture_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="neither text nor a picture"):
        runtime.embed([Sample("red dress"), Sample()], {})


@pytest.mark.parametrize("mark", ["<image>", "<pad>", "<global-img>", "<fake_token_around_image>", "<end_of_utterance>"])
def test_a_special_token_in_a_title_is_text(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]], mark: str) -> None:
    """Else one seller's title would take the place of a picture, and no item beside it could be embedded."""
    neighbour = SAMPLES["text and picture"]
    before = runtime.embed([neighbour], pixels)[0]
    marked, beside = runtime.embed([Sample(f"red {mark} dress", ("dots",)), neighbour], pixels)
    assert beside @ before > 0.9999
    assert np.linalg.norm(marked) == pytest.approx(1.0, abs=1e-5)
    ids = runtime.tokenizer.encode(mark, add_special_tokens=False).ids
    assert runtime.tokenizer.token_to_id(mark) not in ids
    assert len(ids) > 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tower.onnx", "trunk.onnx"])
def test_a_tampered_file_is_refused(copy_of_encoder: Path, name: str) -> None:
    contract = Contract.load(copy_of_encoder).contract_id
    with (copy_of_encoder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ContractError, match=rf"{name} has sha256 .* but contract {contract} is for"):
        Runtime(copy_of_encoder)


def test_a_missing_graph_is_refused(copy_of_encoder: Path) -> None:
    (copy_of_encoder / "trunk.onnx").unlink()
    with pytest.raises(ContractError, match=r"trunk\.onnx has sha256 nothing"):
        Runtime(copy_of_encoder)


def test_an_edited_contract_is_refused(copy_of_encoder: Path) -> None:
    path = copy_of_encoder / "contract.json"
    path.write_text(path.read_text().replace('"fp32"', '"fp16"'))
    with pytest.raises(ContractError, match="its content hashes to"):
        Runtime(copy_of_encoder)


def test_other_pixels_than_at_export_are_refused(copy_of_encoder: Path) -> None:
    replace(Contract.load(copy_of_encoder), golden_pixels="0" * 64).save(copy_of_encoder)
    with pytest.raises(ContractError, match="is for 000000000000"):
        Runtime(copy_of_encoder)


def test_a_directory_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no contract\.json"):
        Runtime(tmp_path)
