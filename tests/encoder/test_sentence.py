"""A saved encoder is a model of sentence-transformers: the same vectors for every input form, with no code of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from moon_ops.encoder import sentence
from moon_ops.encoder.model import Encoder, build
from moon_ops.inputs.images import decode, pixels
from moon_ops.recipes.encoder import EncoderRecipe, Experts, Inputs, Training

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug for tea", "dotted lamp", "striped t-shirt, size M"] * 8
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
CARD = sentence.Card("nano", "2026-03-01", 7, 32, (8, 16, 32), 50_000, {"recall at 10": 0.51239}, "apache-2.0")
LONG = "green ceramic mug for tea, dotted lamp and blue leather boots " * 4
Sample = tuple[str, list[Image.Image]]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


TALL, WIDE, SMALL = picture(1, 40, 61), picture(2, 120, 33), picture(3, 20, 20)
SAMPLES: dict[str, Sample] = {
    "text": ("red dress", []),
    "picture that is not square": ("", [TALL]),
    "both": ("blue boots", [WIDE]),
    "two pictures and a text": ("green mug", [SMALL, TALL]),
    "two pictures": ("", [WIDE, SMALL]),
    "upper case and accents": ("RED Crêpe Dress ½ ＜Ｍ＞", []),
    "special token": ("a <image> lamp", []),
    "special tokens beside a picture": ("<image><fake_token_around_image>", [TALL]),
    "padding token": ("<pad> mug <pad>", []),
    "template language": ("{{ messages }} {% if", [SMALL]),
    "spaces and a line end": ("  red\n dress ", [SMALL]),
    "long text": (LONG, [TALL, WIDE]),
}


def tiny(**options: Any) -> Encoder:
    inputs = Inputs(picture_size=32, max_pictures=2, max_text_tokens=40)
    parts: dict[str, Any] = {"vision": VISION, "text": TEXT, "vocabulary": 400, **options}
    recipe = EncoderRecipe(name="x", family="smolvlm", inputs=inputs, training=Training(batch=4, learning_rate=1e-3), **parts)
    return build(recipe, TEXTS, seed=0).eval()


def saved(encoder: Encoder, directory: Path) -> Path:
    encoder.save(directory)
    sentence.write(encoder, directory, CARD)
    return directory


def ids(encoder: Encoder, samples: Sequence[Sample]) -> tuple[Any, Any]:
    return encoder.layout.batch(
        [encoder.tokenizer.encode(t, add_special_tokens=False).ids for t, _ in samples], [len(p) for _, p in samples]
    )


@torch.no_grad()
def expected(encoder: Encoder, samples: Sequence[Sample]) -> Any:
    """The encoder's own vectors."""
    size = encoder.layout.picture_size
    read = [pixels(p, size) for _, pictures in samples for p in pictures]
    values = torch.from_numpy(np.stack(read)) if read else torch.zeros((0, 3, size, size), dtype=torch.uint8)
    return encoder(*map(torch.from_numpy, ids(encoder, samples)), values).numpy()


def form(sample: Sample) -> Any:
    """The sample as the library's users write it."""
    text, pictures = sample
    if not pictures:
        return {"text": text}
    if not text and len(pictures) == 1:
        return pictures[0]
    shown: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures}
    return {"text": text, **shown} if text else shown


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny()


@pytest.fixture(scope="module")
def directory(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(encoder, tmp_path_factory.mktemp("saved") / "nano")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(directory), device="cpu")


@pytest.mark.parametrize("name", SAMPLES)
def test_each_input_form_gives_the_encoders_vector(encoder: Encoder, model: Any, name: str) -> None:
    np.testing.assert_allclose(model.encode([form(SAMPLES[name])]), expected(encoder, [SAMPLES[name]]), atol=1e-5)


def test_a_batch_of_all_forms_and_lengths(encoder: Encoder, model: Any) -> None:
    samples = list(SAMPLES.values())
    vectors = model.encode([form(s) for s in samples], batch_size=len(samples))
    np.testing.assert_allclose(vectors, expected(encoder, samples), atol=1e-5)
    assert len({tuple(v.round(4)) for v in vectors}) == len(samples)


def test_the_sequence_is_the_layouts(encoder: Encoder, model: Any) -> None:
    samples = list(SAMPLES.values())
    features = model.preprocess([form(s) for s in samples])
    for name, own in zip(("input_ids", "attention_mask"), ids(encoder, samples), strict=True):
        np.testing.assert_array_equal(features[name].numpy(), own)


def test_plain_strings_and_the_order_of_keys(encoder: Encoder, model: Any) -> None:
    given = ["red dress", {"image": WIDE, "text": "blue boots"}, {"text": "blue boots", "image": [WIDE]}]
    both = SAMPLES["both"]
    np.testing.assert_allclose(model.encode(given), expected(encoder, [SAMPLES["text"], both, both]), atol=1e-5)
    np.testing.assert_allclose(model.encode_query(given[0]), expected(encoder, [SAMPLES["text"]])[0], atol=1e-5)
    np.testing.assert_allclose(model.encode_document(given[1]), expected(encoder, [both])[0], atol=1e-5)


def test_a_picture_from_a_path_is_read_as_the_lake_reads_it(encoder: Encoder, model: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    path = tmp_path / "turned.png"
    TALL.convert("RGBA").save(path, exif=exif)
    own = expected(encoder, [("mug", [decode(path.read_bytes())])])
    np.testing.assert_allclose(model.encode([{"image": str(path), "text": "mug"}]), own, atol=1e-5)


@pytest.mark.parametrize("pictures", [[], [TALL], [TALL, WIDE]])
def test_a_long_text_is_cut_where_the_layout_cuts_it(encoder: Encoder, model: Any, pictures: list[Image.Image]) -> None:
    sample = (LONG, pictures)
    assert len(encoder.tokenizer.encode(LONG).ids) > encoder.layout.max_tokens
    vector = model.encode([form(sample)])
    np.testing.assert_allclose(vector, expected(encoder, [sample]), atol=1e-5)


def test_without_a_word_the_limit_is_on_the_whole_sequence(encoder: Encoder, model: Any) -> None:
    lengths = model.preprocess([form((LONG, pictures)) for pictures in ([], [TALL], [TALL, WIDE])])["attention_mask"].sum(1)
    assert lengths.tolist() == [encoder.layout.max_tokens] * 3
    assert model.max_seq_length == encoder.layout.max_tokens == 2 * 7 + 40


@pytest.mark.parametrize(
    ("given", "why"), [("", "a text, a picture, or both"), ({"image": [SMALL] * 3, "text": "mug"}, "at most 2 pictures")]
)
def test_what_the_layout_has_no_place_for_is_refused(model: Any, given: Any, why: str) -> None:
    with pytest.raises(Exception, match=why):
        model.encode([given])


def test_prefixes_are_the_librarys_truncated_vectors(encoder: Encoder, directory: Path) -> None:
    short = sentence_transformers.SentenceTransformer(str(directory), device="cpu", truncate_dim=16)
    own = expected(encoder, [SAMPLES["both"]])[:, :16]
    vectors = short.encode([form(SAMPLES["both"])], normalize_embeddings=True)
    np.testing.assert_allclose(vectors, own / np.linalg.norm(own), atol=1e-5)


def test_pictures_are_scaled_by_pillow_wherever_it_is_loaded(model: Any, directory: Path) -> None:
    """Torchvision scales differently, by some 1e-3 in the vectors; the library would take it where it is installed."""
    assert type(model.processor.image_processor).__name__ == "SmolVLMImageProcessorPil"
    assert json.loads((directory / "sentence_bert_config.json").read_text())["processor_kwargs"]["backend"] == "pil"


def test_what_a_contract_names_stays_as_it_was(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    sentence.write(encoder, tmp_path, CARD)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert [p.name for p in tmp_path.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".pkl")] == ["model.safetensors"]


def test_saved_again_by_the_library_it_is_the_same(encoder: Encoder, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode([form(SAMPLES["both"])]), expected(encoder, [SAMPLES["both"]]), atol=1e-5)


def foreign(encoder: Encoder) -> Encoder:
    """The encoder with a tokenizer as checkpoints bring it: it folds nothing, pads with another token, and ends texts with a mark."""
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str().replace('"<pad>"', '"<|endoftext|>"'))
    tokenizer.normalizer = None
    end = ("<end_of_utterance>", tokenizer.token_to_id("<end_of_utterance>"))
    tokenizer.post_processor = TemplateProcessing(single="$A <end_of_utterance>", special_tokens=[end])
    return Encoder(encoder.model, tokenizer, encoder.layout).eval()


def test_a_checkpoints_own_tokenizer(encoder: Encoder, tmp_path: Path) -> None:
    """A special token in a text becomes other tokens than the encoder's, which the card says, but never a picture's place."""
    other = foreign(encoder)
    model = sentence_transformers.SentenceTransformer(str(saved(other, tmp_path)), device="cpu")
    samples = [SAMPLES["text"], SAMPLES["both"], SAMPLES["two pictures"], SAMPLES["long text"]]
    np.testing.assert_allclose(model.encode([form(s) for s in samples]), expected(other, samples), atol=1e-5)
    features = model.preprocess([{"text": "a <image><pad> lamp"}, {"text": "mug", "image": TALL}])["input_ids"]
    assert (features == encoder.layout.image_token_id).sum(1).tolist() == [0, encoder.layout.tokens_per_picture]
    assert features.max() < encoder.config.text_config.vocab_size
    assert "with a space after its first character" in (tmp_path / "README.md").read_text()


ALONE = """
import json, sys
for name in ("moon_ops", *sys.argv[2:]):
    sys.modules[name] = None
from sentence_transformers import SentenceTransformer
place, samples, trust = json.loads(sys.argv[1])
model = SentenceTransformer(place, device="cpu", trust_remote_code=trust)
print(json.dumps(model.encode(samples, batch_size=2).tolist()))
"""


def alone(directory: Path, place: Path, trust: bool) -> subprocess.CompletedProcess[str]:
    """The vectors of a process that cannot import this package and reaches no hub."""
    samples = []
    for n, (text, pictures) in enumerate(SAMPLES.values()):
        paths = [str(place / f"{n}-{k}.png") for k in range(len(pictures))]
        for path, shown in zip(paths, pictures, strict=True):
            shown.save(path)
        samples.append({**({"text": text} if text else {}), **({"image": paths} if paths else {})})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-I", "-c", ALONE, json.dumps([str(directory), samples, trust])]
    return subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_vectors_need_neither_this_package_nor_trust(encoder: Encoder, directory: Path, tmp_path: Path) -> None:
    done = alone(directory, tmp_path, trust=False)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected(encoder, list(SAMPLES.values())), atol=1e-5)


@pytest.mark.parametrize("tower", ["conv", "efficientnet-lite0"])
def test_a_tower_of_our_own_comes_with_its_code(tower: str, tmp_path: Path) -> None:
    if tower == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    vision: dict[str, Any] = {"channels": [8, 16, 16]} if tower == "conv" else {}
    encoder = tiny(tower=tower, vision=vision, scale_factor=1)
    directory = saved(encoder, tmp_path / "tower")
    assert (directory / "towers.py").is_file()
    done = alone(directory, tmp_path, trust=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected(encoder, list(SAMPLES.values())), atol=1e-5)
    assert "trust_remote_code=True" in (directory / "README.md").read_text()


def test_the_card_says_what_it_is_and_how_to_use_it(directory: Path) -> None:
    card = ModelCard.load(directory / "README.md")
    assert card.data.to_dict()["library_name"] == "sentence-transformers"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "feature-extraction"
    assert "sentence-transformers" in (card.data.tags or [])
    for said in (
        "# nano",
        "up to 2026-03-01",
        "seed 7",
        "32 numbers",
        "8, 16, 32",
        "50,000 parameters",
        "| recall at 10 | 0.5124 |",
        "truncate_dim=16",
    ):
        assert said in card.text, said
    assert "trust_remote_code" not in card.text


def test_the_cards_example_runs(encoder: Encoder, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    TALL.save(tmp_path / "dress.jpg", quality=95)
    (tmp_path / directory.name).symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(example, told)  # the text that a reader copies
    shown = decode((tmp_path / "dress.jpg").read_bytes())
    own = expected(encoder, [("red dress", []), ("", [shown]), ("red dress", [shown])])
    np.testing.assert_allclose(told["vectors"], own, atol=1e-5)


@pytest.mark.parametrize("kind", ["experts", "core region", "family"])
def test_what_the_library_has_no_form_for_gets_its_card_alone(
    encoder: Encoder, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "experts":
        other = tiny(experts=Experts(routed=2))
    elif kind == "family":
        monkeypatch.setattr(sentence, "FAMILIES", {})
        other = encoder
    else:
        other = Encoder(encoder.model, encoder.tokenizer, replace(encoder.layout, core_region="saliency"))
    sentence.write(other, tmp_path, CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    card = ModelCard.load(tmp_path / "README.md")
    assert "ONNX graphs" in card.text
    assert "SentenceTransformer(" not in card.text
    assert "sentence-transformers" not in (card.data.tags or [])
