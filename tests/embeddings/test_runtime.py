"""The one inference path: a vector depends on its sample alone, and files that are not the contract's are refused."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from moon_ops.embeddings.runtime import BATCH, Runtime
from moon_ops.errors import ContractError, InputError
from moon_ops.lake.contract import Contract, Sample
from moon_ops.lake.regions import Saliency, views
from moon_ops.serving.champion import Champion

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


@pytest.fixture(scope="module")
def two_views() -> dict[str, NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for name in ("dots", "stripes")}


def test_two_views_go_to_their_own_picture(core_encoder: Any, core_runtime: Runtime, two_views: dict[str, NDArray[np.uint8]]) -> None:
    """Each sample alone through the encoder, and all of them at once through the graphs."""
    found = core_runtime.embed(list(SAMPLES.values()), two_views)
    for sample, vector in zip(SAMPLES.values(), found, strict=True):
        ids = core_encoder.tokenizer.encode(sample.text, add_special_tokens=False).ids
        batch = core_encoder.layout.batch([ids], [len(sample.image_ids)])
        assert (batch[0] == core_encoder.layout.image_token_id).sum() == 2 * 4 * len(sample.image_ids)
        shown = [view for name in sample.image_ids for view in two_views[name]]
        pixels = torch.from_numpy(np.stack(shown)) if shown else torch.zeros((0, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            expected = core_encoder(*(torch.from_numpy(part) for part in batch), pixels)[0]
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_crop_counts(core_runtime: Runtime, two_views: dict[str, NDArray[np.uint8]]) -> None:
    sample = Sample("red dress", ("dots",))
    other = {"dots": np.stack([two_views["dots"][0], two_views["stripes"][1]])}
    turned = {"dots": two_views["dots"][::-1]}
    vectors = np.concatenate([core_runtime.embed([sample], pixels) for pixels in (two_views, other, turned)])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_a_served_photograph_is_read_in_two_views(core_runtime: Runtime) -> None:
    picture = Image.new("RGB", (80, 60), "white")
    picture.paste((200, 30, 30), (50, 10, 70, 50))
    picture.save(content := io.BytesIO(), "PNG")
    found = Champion.embed(SimpleNamespace(runtime=core_runtime), "coat", content.getvalue())  # the method needs no more of a release
    read = views(picture, 32, "saliency")
    expected = core_runtime.embed([Sample("coat", ("q",))], {"q": read})[0]
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.abs(found - core_runtime.embed([Sample("coat", ("q",))], {"q": read[[0, 0]]})[0]).max() > 1e-4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 16, 16)])
def test_pixels_of_another_shape_are_refused(core_runtime: Runtime, shape: tuple[int, ...]) -> None:
    """Else one picture's views would take the place of the next one's."""
    with pytest.raises(InputError, match=rf"pixels are {re.escape(str(list(shape)))}, but contract .* reads \[2, 3, 32, 32\]"):
        core_runtime.embed([Sample("", ("dots",))], {"dots": np.zeros(shape, np.uint8)})


def test_one_view_may_come_with_its_axis_or_without(runtime: Runtime, pixels: dict[str, NDArray[np.uint8]]) -> None:
    samples = list(SAMPLES.values())
    np.testing.assert_array_equal(runtime.embed(samples, {n: p[None] for n, p in pixels.items()}), runtime.embed(samples, pixels))


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


def test_another_detector_than_at_export_is_refused(core_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Saliency, "padding", 0.2)
    with pytest.raises(ContractError, match="pictures are resized to pixels"):
        Runtime(core_directory)


def test_a_directory_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no contract\.json"):
        Runtime(tmp_path)
