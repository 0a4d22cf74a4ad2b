"""The one inference path: a vector depends on its sample alone, and files that are not the contract's are refused."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from moon_ops.embeddings import runtime as runtimes
from moon_ops.embeddings.runtime import CPU, CUDA, Runtime, Shape
from moon_ops.encoder.variants import Golden, make_variant
from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import Contract, Sample
from moon_ops.inputs.regions import Saliency, views
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
    several = [list(SAMPLES.values())[n % len(SAMPLES)] for n in range(2 * runtime.shape.samples + 5)]
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
    found = Champion.embed(
        SimpleNamespace(runtime=core_runtime, encoder=1), "coat", content.getvalue()
    )  # the method needs no more of a release
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


def test_pictures_of_a_kind_that_is_decoded_otherwise_are_refused(copy_of_encoder: Path) -> None:
    contract = Contract.load(copy_of_encoder)
    assert {"png transparent", "png grey 16", "jpeg cmyk", "webp", "gif", "avif"} <= contract.golden_kinds.keys()
    black = "00" * (len(contract.golden_kinds["png transparent"]) // 2)
    replace(contract, golden_kinds={**contract.golden_kinds, "png transparent": black, "jxl": "00"}).save(copy_of_encoder)
    with pytest.raises(ContractError, match=r"pictures \(png transparent, jxl\) become other pixels here"):
        Runtime(copy_of_encoder)


def test_an_encoder_from_before_the_kinds_is_served_and_says_so_once(copy_of_encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = replace(Contract.load(copy_of_encoder), golden_kinds={})
    older.save(copy_of_encoder)
    for _ in range(2):
        assert Runtime(copy_of_encoder).contract_id == older.contract_id
    said = [record.getMessage() for record in caplog.records if record.name == "moon_ops.embeddings.runtime"]
    assert len(said) == 1
    assert said[0].startswith(f"contract {older.contract_id} was exported before transparent pictures became white")


def test_another_detector_than_at_export_is_refused(core_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Saliency, "padding", 0.2)
    with pytest.raises(ContractError, match="pictures are resized to pixels"):
        Runtime(core_directory)


def test_a_directory_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no contract\.json"):
        Runtime(tmp_path)


@pytest.mark.parametrize(("count", "rounded"), [(1, 1), (2, 2), (3, 4), (9, 16), (16, 16), (17, 32), (33, 48)])
def test_counts_are_rounded_to_few(count: int, rounded: int) -> None:
    assert CUDA.rounded(count) == rounded
    assert CPU.rounded(count) == count


def test_rounded_shapes_change_no_vector(core_directory: Path, core_runtime: Runtime, two_views: dict[str, NDArray[np.uint8]]) -> None:
    """As on a GPU: rows, lengths and pictures are padded."""
    padded = Runtime(core_directory, threads=1)
    padded.shape = Shape(samples=8, pictures=4, step=16)
    several = list(SAMPLES.values()) * 4
    np.testing.assert_allclose(padded.embed(several, two_views), core_runtime.embed(several, two_views), atol=1e-5)
    batch = padded.batch([[5, 6]] * 3, [[], [two_views["dots"]], []])
    assert batch.ids.shape == (4, 16)
    assert batch.mask.sum(1).tolist() == [2, 2 + len(padded.contract.layout.picture()), 2, 1]
    assert padded.forward(batch).shape == (3, padded.dim)


def test_similar_lengths_go_together(core_runtime: Runtime) -> None:
    lengths = np.random.default_rng(0).integers(1, 12, 100)
    planned = core_runtime.plan([[1] * n for n in lengths], [0] * 100)
    assert sorted(np.concatenate(planned)) == list(range(100))
    assert max(len(rows) for rows in planned) == core_runtime.shape.samples
    ends = [(lengths[rows].min(), lengths[rows].max()) for rows in planned]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


def test_a_picture_counts_as_its_tokens_and_a_text_is_cut(core_runtime: Runtime) -> None:
    layout = core_runtime.contract.layout
    long = [1] * (layout.max_tokens + 50)
    rows = core_runtime.plan([[1], long, [1], long], [1, 0, 0, layout.max_pictures + 9])
    assert np.concatenate(rows).tolist() == [2, 0, 1, 3]


def test_many_threads_get_what_one_gets(core_directory: Path, core_runtime: Runtime, two_views: dict[str, NDArray[np.uint8]]) -> None:
    opened = Runtime(core_directory, threads=2)
    opened.warm_up(bulk=True)
    samples = list(SAMPLES.values())
    texts = opened.tokenize([s.text for s in samples])
    batches = [opened.batch([text], [[two_views[i] for i in s.image_ids]]) for text, s in zip(texts, samples, strict=True)] * 5
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(lambda batch: opened.forward(batch, bulk=True), batches)))
    np.testing.assert_allclose(found, np.tile(core_runtime.embed(samples, two_views), (5, 1)), atol=1e-5)


def test_warming_up_opens_the_graphs(core_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Runtime(core_directory, threads=1)
    opened.warm_up()
    monkeypatch.setattr(runtimes, "session", None)
    assert opened.embed([Sample("red dress")], {}).shape == (1, opened.dim)


@pytest.fixture(scope="module")
def core_int8(core_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(core_directory, tmp_path_factory.mktemp("int8") / "encoder"))
    pixels = {f"p{n}": np.random.default_rng(n).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for n in range(12)}
    shown = [Sample("", (name,)) for name in pixels]
    make_variant(place, "int8", golden=Golden(shown, shown, range(12), pixels))
    return place


def test_a_variant_stands_under_the_same_contract(core_int8: Path, core_runtime: Runtime, two_views: dict[str, NDArray[np.uint8]]) -> None:
    small, plain = Runtime(core_int8, threads=1, variant="int8"), Runtime(core_int8, threads=1)
    assert small.contract_id == plain.contract_id == core_runtime.contract_id
    samples = list(SAMPLES.values())
    exact = core_runtime.embed(samples, two_views)
    np.testing.assert_array_equal(plain.embed(samples, two_views), exact)
    found = small.embed(samples, two_views)
    assert np.abs(found - exact).max() > 0
    assert (found * exact).sum(1).min() > 0.99


def test_a_variant_without_a_certificate_is_refused(core_directory: Path) -> None:
    says = r"certificate\.int8\.json: nobody has measured .* make it with `moon export CHECKPOINT --variant int8`"
    with pytest.raises(ContractError, match=says):
        Runtime(core_directory, variant="int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contract_id": "c-000000000000"}, "is for contract c-000000000000, but the encoder's is"),
        ({"recall_loss": 0.2}, "records a recall loss of 0.2 above 0.01"),
        ({"graphs": {}}, "does not cover both graphs"),
        ({"floor": None}, "is not a certificate as it was written|does not cover"),
    ],
)
def test_a_certificate_of_something_else_is_refused(core_int8: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    place = Path(shutil.copytree(core_int8, tmp_path / "encoder"))
    path = place / "certificate.int8.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ContractError, match=message):
        Runtime(place, variant="int8")
    Runtime(place)  # the contract's own graphs are not touched by it


@pytest.mark.parametrize("name", ["tower.int8.onnx", "trunk.int8.onnx"])
def test_a_tampered_variant_is_refused(core_int8: Path, tmp_path: Path, name: str) -> None:
    place = Path(shutil.copytree(core_int8, tmp_path / "encoder"))
    with (place / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ContractError, match=rf"{re.escape(name)} has sha256 .* make its variant int8 again"):
        Runtime(place, variant="int8")
