"""From samples in the lake to vectors: nothing is mixed up, one bad picture stops nobody, and memory is bounded."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from moon_ops.embeddings import pipeline
from moon_ops.embeddings.pipeline import AHEAD, Embedded, embed_samples, embed_stream
from moon_ops.embeddings.runtime import Runtime
from moon_ops.inputs.contract import Sample
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import image_bytes

GOOD = ("red", "green", "blue", "dotted")
SAMPLES = [
    Sample("red dress"),
    Sample("", ("red",)),
    Sample("a green mug for tea with a long handle", ("green",)),
    Sample("boots", ("blue", "red")),
    Sample("", ("dotted", "green")),
    Sample("x"),
    Sample("two lamps", ("dotted",)),
]


def content(name: str) -> bytes:
    picture = Image.new("RGB", (50, 40), "white" if name == "dotted" else name)
    if name == "dotted":
        picture.paste((10, 20, 90), (5, 5, 20, 30))
    picture.save(out := io.BytesIO(), "JPEG")
    return out.getvalue()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Four good pictures, a text that says it is one, and half a picture."""
    rows = [{"image_id": name, "bytes": content(name)} for name in GOOD]
    rows += [{"image_id": "text", "bytes": b"not a picture"}, {"image_id": "half", "bytes": content("red")[:300]}]
    filled = Lake(str(tmp_path / "lake"))
    filled.append("images", pa.Table.from_pylist(rows, schema=SCHEMAS["images"]))
    return filled


@pytest.fixture
def expected(lake: Lake, core_runtime: Runtime) -> Any:
    """Each of ``SAMPLES`` alone, from pictures decoded one by one."""
    pixels = {name: views(decode(content), 32, "saliency") for name, content in image_bytes(lake, GOOD)}
    return np.concatenate([core_runtime.embed([sample], pixels) for sample in SAMPLES])


def embed(lake: Lake, runtime: Runtime, *samples: Sample, workers: int = 2) -> Embedded:
    return embed_samples(lake, runtime, samples, workers=workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_sample_gets_its_own_vector_in_the_order_given(
    lake: Lake, core_runtime: Runtime, expected: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "READ", 20)  # many readings of several batches each
    order = np.random.default_rng(0).integers(0, len(SAMPLES), 150)
    made = embed(lake, core_runtime, *(SAMPLES[n] for n in order), workers=workers)
    np.testing.assert_allclose(made.vectors, expected[order], atol=1e-5)
    assert made.kept().tolist() == list(range(150))
    assert not made.excused
    assert not made.unread


def test_a_stream_hands_over_chunks_in_order(lake: Lake, core_runtime: Runtime, expected: Any) -> None:
    found = list(embed_stream(lake, core_runtime, iter(SAMPLES), workers=2, chunk=3))
    assert [len(made.vectors) for made in found] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate([made.vectors for made in found]), expected, atol=1e-5)


@pytest.mark.parametrize("broken", ["text", "half", "never seen"])
def test_a_picture_that_cannot_be_read_is_left_out(lake: Lake, core_runtime: Runtime, broken: str) -> None:
    told = embed(lake, core_runtime, Sample("boots", (broken, "red")), Sample("boots", (broken,)), Sample("", ("red", broken)), SAMPLES[3])
    left = embed(lake, core_runtime, Sample("boots", ("red",)), Sample("boots"), Sample("", ("red",)), SAMPLES[3])
    np.testing.assert_allclose(told.vectors, left.vectors, atol=1e-5)
    assert list(told.unread) == [broken]
    assert told.unread[broken]
    assert not told.excused


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("text", "it has no text; text: picture: it is not a JPEG, PNG, WebP, GIF, AVIF or HEIC picture"),
        ("half", "it has no text; half: picture: it cannot be decoded"),
        ("never seen", "it has no text; never seen: the lake has no such picture"),
    ],
)
def test_where_nothing_is_left_there_is_a_reason(lake: Lake, core_runtime: Runtime, expected: Any, broken: str, reason: str) -> None:
    made = embed(lake, core_runtime, SAMPLES[0], Sample("", (broken,)), SAMPLES[1], Sample("", ()))
    assert sorted(made.excused) == [1, 3]
    assert made.excused[1].startswith(reason)
    assert made.excused[3] == "it has neither text nor a picture"
    assert made.kept().tolist() == [0, 2]
    np.testing.assert_allclose(made.vectors[made.kept()], expected[:2], atol=1e-5)
    assert np.isnan(made.vectors[[1, 3]]).all()


def test_a_batch_of_which_nothing_is_left(lake: Lake, core_runtime: Runtime) -> None:
    made = embed(lake, core_runtime, *[Sample("", ("half",))] * 40)
    assert len(made.excused) == 40
    assert made.kept().shape == (0,)


def test_pictures_beyond_the_most_are_not_read(lake: Lake, core_runtime: Runtime) -> None:
    most = core_runtime.contract.layout.max_pictures
    made = embed(lake, core_runtime, Sample("boots", (*["red"] * most, "half")))
    assert not made.unread


def test_texts_alone_need_no_pictures_in_the_lake(core_runtime: Runtime, expected: Any, tmp_path: Path) -> None:
    made = embed(Lake(str(tmp_path / "none")), core_runtime, SAMPLES[0], SAMPLES[5])
    np.testing.assert_allclose(made.vectors, expected[[0, 5]], atol=1e-5)


def test_no_samples_are_no_vectors(lake: Lake, core_runtime: Runtime) -> None:
    assert embed(lake, core_runtime).vectors.shape == (0, core_runtime.dim)
    assert list(embed_stream(lake, core_runtime, [], workers=1)) == []


def test_no_more_is_read_than_is_needed_next(lake: Lake, core_runtime: Runtime) -> None:
    """An endless stream: what is taken from it follows what is handed over, at a fixed distance."""
    taken = []

    def endless() -> Iterator[Sample]:
        while True:
            taken.append(1)
            yield SAMPLES[3]

    stream = embed_stream(lake, core_runtime, endless(), workers=2, chunk=5)
    for handed in range(1, 6):
        next(stream)
        assert 5 * handed < len(taken) <= 5 * (handed + AHEAD)
    stream.close()


def photographs(lake: Lake, count: int) -> list[Sample]:
    """Samples of a picture each, all different and of some kilobytes."""
    drawn = np.random.default_rng(1).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8)
    rows = []
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
        rows.append({"image_id": f"photograph{number:03}", "bytes": out.getvalue()})
    lake.append("images", pa.Table.from_pylist(rows, schema=SCHEMAS["images"]))
    return [Sample("", (row["image_id"],)) for row in rows]


@pytest.mark.parametrize("workers", [1, 3])
def test_of_large_pictures_few_are_in_memory(lake: Lake, core_runtime: Runtime, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = photographs(lake, 100)
    small = embed(lake, core_runtime, *samples, workers=workers)
    held, most, lock = 0, 0, threading.Lock()

    def count(more: int) -> None:
        nonlocal held, most
        with lock:
            held += more
            most = max(most, held)

    def reading(*asked: Any) -> Iterator[tuple[str, bytes]]:
        for found in image_bytes(*asked):
            count(1)
            yield found

    def decoding(content: bytes) -> Any:
        picture = decode(content)
        count(-1)
        return picture

    monkeypatch.setattr(pipeline, "image_bytes", reading)
    monkeypatch.setattr(pipeline, "decode", decoding)
    monkeypatch.setattr(pipeline, "READ_BYTES", 4 * 6500)  # four and a bit of these
    large = embed(lake, core_runtime, *samples, workers=workers)
    assert 2 <= most <= 5
    assert held == 0, "each is decoded once"
    np.testing.assert_allclose(large.vectors, small.vectors, atol=1e-5)


def test_of_a_picture_larger_than_the_bound_there_is_one(lake: Lake, core_runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    small = embed(lake, core_runtime, *SAMPLES, Sample("x", ("half",)))
    monkeypatch.setattr(pipeline, "READ_BYTES", 1)
    large = embed(lake, core_runtime, *SAMPLES, Sample("x", ("half",)))
    np.testing.assert_allclose(large.vectors, small.vectors, atol=1e-5)
    assert large.unread == small.unread
    assert list(large.unread) == ["half"]


def test_decoded_pictures_bound_a_reading_too(lake: Lake, core_runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pipeline, "image_bytes", lambda lake, wanted: asked.append(len(wanted)) or image_bytes(lake, wanted))
    monkeypatch.setattr(pipeline, "PIXELS_BYTES", 40 * 2 * 3 * 32**2)  # forty pictures of two views of 32 pixels
    embed(lake, core_runtime, *photographs(lake, 100))
    assert sum(asked) == 100
    assert max(asked) <= max(40, core_runtime.shape.samples)


def embedding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("embed")]


def test_a_caller_that_stops_early_leaves_no_thread(lake: Lake, core_runtime: Runtime) -> None:
    stream = embed_stream(lake, core_runtime, SAMPLES * 20, workers=2, chunk=10)
    next(stream)
    assert embedding_threads()
    stream.close()
    assert not embedding_threads()


def test_a_fault_of_the_model_is_not_swallowed(lake: Lake, core_runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(core_runtime, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        embed(lake, core_runtime, *SAMPLES)
    assert not embedding_threads()
