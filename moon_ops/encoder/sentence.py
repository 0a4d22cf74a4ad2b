"""What makes a saved encoder a model of the sentence-transformers library, and its model card.

:meth:`moon_ops.encoder.model.Encoder.save` writes a transformers checkpoint; :func:`write` adds the few files that say how inputs
become sequences (a processor and a chat template) and how hidden states become a vector (mean pooling, normalisation). Then
``SentenceTransformer(directory)`` reads it without this package. All that differs between families is in ``FAMILIES``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from tokenizers import Tokenizer
from transformers import Idefics3Processor, PreTrainedTokenizerFast, ProcessorMixin

from moon_ops.encoder.model import Encoder
from moon_ops.encoder.tokenizer import IMAGE
from moon_ops.inputs.contract import Layout

LIBRARY = "sentence-transformers"
WIDE = "\uff1c"  # FULLWIDTH LESS-THAN SIGN, which NFKC turns into "<" only after special tokens were looked for
OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
TEMPLATE = """\
{%- set said = namespace(pictures=0, text='') -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set said.text = said.text ~ message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {%- set said.pictures = said.pictures + 1 -%}
      {%- elif part['type'] == 'text' -%}
        {%- set said.text = said.text ~ part['text'] -%}
      {%- else -%}
        {{- raise_exception('this model reads texts and pictures, not ' ~ part['type']) -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if said.pictures > MAX_PICTURES -%}
  {{- raise_exception('this model reads at most MAX_PICTURES pictures with one text') -}}
{%- elif said.pictures == 0 and said.text == '' -%}
  {{- raise_exception('an input needs a text, a picture, or both') -}}
{%- endif -%}
{{- PICTURE * said.pictures -}}
{{- said.textESCAPES -}}
"""


@dataclass(frozen=True)
class Card:
    """What a model card tells of one training run."""

    recipe: str
    trained_until: str  # the end of the training data's window; nothing later was seen
    seed: int
    dims: int
    prefixes: tuple[int, ...]  # Matryoshka lengths that were trained, beside the whole vector
    parameters: int
    metrics: dict[str, float]
    licence: str
    place: str = ""  # the name that the directory will have; empty: its own


@dataclass(frozen=True)
class Family:
    """How the library reads a family: its processor, and what stands for one picture in the chat template."""

    processor: Callable[[Encoder, PreTrainedTokenizerFast], ProcessorMixin]
    picture: str


def _idefics3(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """SmolVLM's processor without its videos, for which SmolVLMProcessor would ask for one more package; the sequences are the same."""
    layout = encoder.layout
    return Idefics3Processor(encoder.parts.picture_processor(layout.picture_size), tokenizer, image_seq_len=layout.tokens_per_picture)


FAMILIES = {"smolvlm": Family(_idefics3, IMAGE)}


def write(encoder: Encoder, directory: Path, card: Card) -> None:
    """Add to the saved encoder in ``directory`` what sentence-transformers needs, and ``README.md``, its model card.

    Where the library has no form for an encoder (guided experts, crops of core regions, a family that is not in ``FAMILIES``) only
    the card is written; it then says that vectors are made by the ONNX graphs.
    """
    if readable(encoder):
        _write_processor(encoder, directory)
        for name, content in _configurations(encoder).items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")
    _model_card(encoder, replace(card, place=card.place or directory.name)).save(directory / "README.md")


def readable(encoder: Encoder) -> bool:
    """Whether sentence-transformers can make this encoder's vectors."""
    return encoder.family in FAMILIES and encoder.experts is None and not encoder.layout.core_region


def chat_template(layout: Layout, tokenizer: Tokenizer, picture: str) -> str:
    """A template that says what :class:`Layout` says: pictures first, then the text, and no word or token besides."""
    escapes = "".join(f" | replace({json.dumps(old)}, {json.dumps(new, ensure_ascii=False)})" for old, new in _escapes(tokenizer))
    return (
        TEMPLATE.replace("MAX_PICTURES", str(layout.max_pictures))
        .replace("PICTURE", json.dumps(picture))
        .replace("said.textESCAPES", f"said.text{escapes}")
    )


def _escapes(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """What to replace in a text so that "<image>" in it stays text: the library knows no ``encode_special_tokens``.

    The catalogue's own tokenizer normalises a wide "<" back after it has looked for special tokens: the tokens are exactly those of
    the text. Without such a normaliser the special token is broken by a space.
    """
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    folds = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(WIDE) == "<"
    if folds and all("<" in token for token in special):
        return [("<", WIDE)]
    return [(token, f"{token[0]} {token[1:]}") for token in sorted(special, key=len, reverse=True)]


def _write_processor(encoder: Encoder, directory: Path) -> None:
    """The processor's own two files; those of the tokenizer stay as they are, because a contract names their hash."""
    family = FAMILIES[encoder.family]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    processor = family.processor(encoder, tokenizer)
    processor.chat_template = chat_template(encoder.layout, tokenizer.backend_tokenizer, family.picture)  # knows the processor's tokens
    with tempfile.TemporaryDirectory() as aside:
        processor.save_pretrained(aside)
        for name in ("processor_config.json", "chat_template.jinja"):
            shutil.copyfile(Path(aside) / name, directory / name)


def _configurations(encoder: Encoder) -> dict[str, Any]:
    """The library's own files by name."""
    message = {**OUTPUT, "format": "structured"}
    modules = (
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
    )
    return {
        "modules.json": [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "requirements": {  # older ones read the text alone, or attend to the left alone, without a word
                "sentence-transformers": {"specifier": ">=6", "reason": "pictures are not read before it"},
                "transformers": {"specifier": ">=5.2", "reason": "attention is not bidirectional before it"},
            },
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": OUTPUT, "image": OUTPUT, "message": message},
            "module_output_name": "token_embeddings",
            "processor_kwargs": {
                "model_max_length": encoder.layout.max_tokens,
                "truncation_side": "right",
                "padding_side": "right",
                "pad_token": encoder.tokenizer.id_to_token(encoder.layout.pad_token_id),
                "backend": "pil",  # torchvision, where it is installed, would scale pictures a little differently
            },
            "processing_kwargs": {"text": {"add_special_tokens": False}, "chat_template": {"restore_suffix": False}},
            "unpad_inputs": False,
        },
        "1_Pooling/config.json": {"embedding_dimension": encoder.dim, "pooling_mode": "mean", "include_prompt": True},
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    }


def _model_card(encoder: Encoder, card: Card) -> ModelCard:
    """The card in Hugging Face's format: front matter, then text."""
    library = LIBRARY if readable(encoder) else "onnx"
    tags = ["feature-extraction", "multimodal", "e-commerce", "product-embeddings", *([LIBRARY] if readable(encoder) else [])]
    data = ModelCardData(library_name=library, pipeline_tag="feature-extraction", tags=tags, license=card.licence)
    sections = (
        _summary(encoder, card),
        _use(encoder, card),
        _inputs(encoder),
        _training(card),
        _figures(card),
        _limits(encoder),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(sections))


def _summary(encoder: Encoder, card: Card) -> str:
    lengths = f", of which the first {_listed(card.prefixes)} are vectors of their own (Matryoshka)" if card.prefixes else ""
    return f"""\
# {card.recipe}

An item or a query of an online shop (text, pictures, or both) as one unit vector of {card.dims} numbers{lengths}.
{card.parameters:,} parameters, family {encoder.family}, bidirectional attention, mean pooling. Two vectors are compared by their
dot product, and only if they come from the same weights and the same tokenizer.
"""


def _use(encoder: Encoder, card: Card) -> str:
    if not readable(encoder):
        return """\
## Use

Vectors of this encoder are read through its ONNX graphs (`*.onnx` in this directory), which `moon export` writes: the
sentence-transformers library has no form for its routed experts, its crops of core regions, or its family.
"""
    remote = ", trust_remote_code=True" if _needs_own_code(encoder) else ""
    note = "\n`trust_remote_code=True` runs `towers.py`, the picture tower, which lies in this directory.\n" if remote else ""
    shorter = [p for p in card.prefixes if p < card.dims]
    cut = f"truncate_dim={shorter[-1]})` with `normalize_embeddings=True` in `encode`.\n" if shorter else ""
    cut = cut and f"\nShorter vectors: `SentenceTransformer(path{remote}, {cut}"
    return f"""\
## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{card.place}"{remote})
vectors = model.encode(["red dress", "dress.jpg", {{"image": "dress.jpg", "text": "red dress"}}])
print(model.similarity(vectors, vectors))
```
{note}{cut}"""


def _inputs(encoder: Encoder) -> str:
    layout = encoder.layout
    block = len(layout.picture())
    text = f"""\
## Inputs

- A text: cut after {layout.max_text_tokens} tokens beside {layout.max_pictures} pictures. The limit is on the whole sequence
  ({layout.max_tokens} tokens, {block} of them for each picture), so fewer pictures leave room for more text.
- A picture: read whole, scaled to {layout.picture_size} × {layout.picture_size} pixels, bilinear, without cropping.
- Both: `{{"image": picture, "text": text}}`; up to {layout.max_pictures} pictures: `{{"image": [first, second], "text": text}}`.
  Pictures come before the text whatever the order of the keys.
"""
    if not readable(encoder):
        return text
    return f"""{text}
A picture is a path, an address, or a PIL picture. The first two are turned upright by their EXIF orientation and read as RGB; do both
yourself with a PIL picture (`PIL.ImageOps.exif_transpose(picture).convert("RGB")`). In training transparent pictures were put on white
and wide-gamut ones converted to sRGB: do that yourself, too. A bare string that is the path or the address of a
picture is opened or fetched: pass text that others wrote as `{{"text": text}}`, which is never anything but text.
"""


def _training(card: Card) -> str:
    return f"""\
## Training data

The catalogue and the behaviour of shoppers up to {card.trained_until}, recipe `{card.recipe}`, seed {card.seed}. Nothing later was seen.
"""


def _figures(card: Card) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in card.metrics.items())
    return "## Measured\n\n" + (f"| figure | value |\n|---|---|\n{rows}\n" if rows else "Nothing was measured.\n")


def _limits(encoder: Encoder) -> str:
    exact = not readable(encoder) or _escapes(encoder.tokenizer) == [("<", WIDE)]
    broken = "" if exact else '- A special token in a text (as "<image>") is read as text with a space after its first character.\n'
    return f"""\
## Limits

- Made for one shop's catalogue: goods, words and photographs unlike those it was trained on are placed badly.
- Learned from what shoppers clicked and bought, with their habits and the shop's own ranking in it.
- Not made to recognise people, or to judge whether a picture is fit to be shown.
{broken}"""


def _needs_own_code(encoder: Encoder) -> bool:
    """Whether the checkpoint carries code: transformers has no picture tower like it."""
    return bool(getattr(encoder.model, "_auto_class", None))


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in numbers)
