"""The recipe of an encoder, as frozen dataclasses: what it reads, how it is built, and each of its training stages with every part as a
switch of its own. A wrong key, a wrong type or a broken rule fails when it is read.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import field, replace
from typing import Literal

from pydantic.dataclasses import dataclass as checked

from moon_ops import shapes
from moon_ops.errors import SettingsError
from moon_ops.recipes.caps import STRICT, Caps, Most
from moon_ops.shapes import rule

PAIR_TYPES = (  # query:item, in the order of the paper's table (MOON, stage 2a)
    "text:rich",
    "text:image",
    "text:title+image",
    "text:rich+image",
    "image:image",
    "image:title+image",
    "image:rich+image",
    "title+image:title+image",
    "rich+image:rich+image",
)
EVENTS = ("click", "cart", "purchase")
SPACY = "spacy:"  # before the name of a pipeline
TOWERS = ("vit", "conv", "efficientnet-lite0")


@checked(frozen=True, config=STRICT)
class Inputs:
    """What an encoder reads of an item or a query."""

    picture_size: int  # pixels, square
    max_pictures: int = 2
    max_text_tokens: int = 40
    core_region: Literal["", "saliency"] = ""  # a detector whose crop is read beside each full picture (MOON 2508.11999)

    def __post_init__(self) -> None:
        rule(self.picture_size >= 16, "picture_size", self.picture_size, "at least 16 pixels")
        rule(self.max_pictures >= 1, "max_pictures", self.max_pictures, "at least 1")
        rule(self.max_text_tokens >= 4, "max_text_tokens", self.max_text_tokens, "at least 4 tokens")


@checked(frozen=True, config=STRICT)
class Experts:
    """Guided mixture of experts in the text trunk (MOON 2508.11999): ``routed`` experts, ``chosen`` per token, and two guided ones."""

    routed: int
    chosen: int = 1
    width: int = 64  # of an expert's hidden layer
    balance: float = 0.0  # weight of the loss that has routed experts used alike (Switch Transformers: 0.01)
    queries: bool = False  # the guided experts also see texts without segments, each token by where the catalogue has it

    def __post_init__(self) -> None:
        rule(0 <= self.balance <= 1, "experts.balance", self.balance, "from 0 to 1")
        rule(self.routed >= 1, "experts.routed", self.routed, "at least 1")
        rule(1 <= self.chosen <= self.routed, "experts.chosen", self.chosen, f"from 1 to routed = {self.routed}")
        rule(self.width >= 1, "experts.width", self.width, "at least 1")


@checked(frozen=True, config=STRICT)
class Lora:
    """Adapters of low rank beside a checkpoint's linear layers, whose weights stay as they came: W + alpha / rank · BA (2106.09685)."""

    rank: int
    alpha: int = 32
    layers: Literal["attention", "all"] = "all"  # of each block; all: its MLP, and what joins tower and text, too
    parts: Literal["text", "tower", "both"] = "both"

    def __post_init__(self) -> None:
        rule(1 <= self.rank <= 1024, "lora.rank", self.rank, "from 1 to 1024")
        rule(0 < self.alpha <= 10_000, "lora.alpha", self.alpha, "above 0, at most 10,000")


@checked(frozen=True, config=STRICT)
class Frozen:
    """What of a checkpoint is not trained and gets no adapters: its first blocks, and the embeddings before them. -1: the whole part."""

    tower: int = 0  # blocks of the picture tower; what joins it to the text is trained all the same
    text: int = 0  # layers of the language model
    embeddings: bool = False  # the token embeddings alone

    def __post_init__(self) -> None:
        rule(self.tower >= -1, "frozen.tower", self.tower, "-1 (all), or a number of blocks")
        rule(self.text >= -1, "frozen.text", self.text, "-1 (all), or a number of layers")


@checked(frozen=True, config=STRICT)
class Training:
    """What all stages share. Temperature = 1 / logit scale, learned from this start in each contrastive stage."""

    batch: int  # samples or pairs per step, over all processes
    learning_rate: float  # AdamW, for embeddings, gains and biases; for everything if matrix_learning_rate is 0
    matrix_learning_rate: float = 0.0  # Muon, for the hidden matrices
    tower_share: float = 1.0  # of these rates for the picture tower: one that has learned already is only to be adapted
    warmup_steps: int = 20  # a fifth at most of what the schedule runs over
    schedule: Literal["stage", "run"] = "stage"  # what the learning rate cools down to zero over: each stage, or all of them
    weight_decay: float = 0.05
    temperature: float = 0.07
    pictures: int = 1  # of an item per step, drawn anew each time; production reads inputs.max_pictures
    fewest_pictures: int = 0  # a number from here to ``pictures`` is drawn with them; 0: always ``pictures``
    text_dropout: float = 0.0  # share of items shown without their text, so that a photograph has to match a picture
    augment: bool = False  # turns, crops, flips and light, on pictures of both sides
    zoom: float = 1.4  # how far at most into a real photograph
    synthetic: float = 0.0  # share of a contrastive batch whose query is an item's own picture, made to look like a photograph
    backdrops: bool = True  # such a photograph's plain backdrop is replaced
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"  # auto: bf16 where the processor computes with it, else no
    chunk: int = 0  # gradient caching: samples in memory at once; 0: the whole batch
    accumulation: int = 1  # batches per step of the optimizer
    sharding: Literal["none", "full"] = "none"  # full: of several processes each holds a part of weights, gradients and optimizer states
    activation_checkpointing: bool = False  # transformer blocks keep their input alone and run once more for the gradients
    checkpoint_steps: int = 50  # a training checkpoint every so many steps; 0: at the end of each stage only
    ema: float = 0.0  # a stage ends with the moving average of its weights, of which each step keeps this share; 0: with the last ones
    prefixes: tuple[int, ...] = ()  # Matryoshka: lengths trained together, the whole vector always
    validate_steps: int = 0  # recall@10 of the newest purchases, which are not trained on, every so many steps of 2a and 2b; 0: off
    validate_share: float = 0.05  # of the days before trained_until whose new purchases are held out
    validate_least: int = 50  # fewer held-out queries are refused
    patience: int = 3  # measurements without a new best after which a stage ends; 0: it takes all of its steps

    def __post_init__(self) -> None:
        rule(self.batch >= 2, "batch", self.batch, "at least 2: one pair has no negatives")
        rule(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "between 0 and 1")
        rule(0 <= self.matrix_learning_rate < 1, "matrix_learning_rate", self.matrix_learning_rate, "from 0, below 1")
        rule(0 < self.temperature <= 1, "temperature", self.temperature, "above 0, at most 1")
        rule(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "from 0, below 1")
        rule(0 <= self.text_dropout < 1, "text_dropout", self.text_dropout, "from 0, below 1")
        rule(0 <= self.synthetic < 1, "synthetic", self.synthetic, "from 0, below 1")
        rule(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        rule(self.pictures >= 1, "pictures", self.pictures, "at least 1")
        rule(0 <= self.fewest_pictures <= self.pictures, "fewest_pictures", self.fewest_pictures, f"from 0 to pictures = {self.pictures}")
        rule(self.chunk >= 0, "chunk", self.chunk, "0 or more")
        rule(self.accumulation >= 1, "accumulation", self.accumulation, "at least 1")
        rule(self.checkpoint_steps >= 0, "checkpoint_steps", self.checkpoint_steps, "0 or more")
        rule(0 <= self.ema < 1, "ema", self.ema, "from 0 (off), below 1")
        rule(0 < self.tower_share <= 1, "tower_share", self.tower_share, "above 0, at most 1")
        rule(1 <= self.zoom <= 4, "zoom", self.zoom, "from 1 to 4")
        rule(all(p >= 1 for p in self.prefixes), "prefixes", self.prefixes, "lengths of at least 1")
        rule(list(self.prefixes) == sorted(set(self.prefixes)), "prefixes", self.prefixes, "ascending, each once")
        rule(self.validate_steps >= 0, "validate_steps", self.validate_steps, "0 (off), or a number of steps")
        rule(0 < self.validate_share <= 0.5, "validate_share", self.validate_share, "above 0, at most .5: the older half is trained on")
        rule(self.validate_least >= 1, "validate_least", self.validate_least, "at least 1")
        rule(self.patience >= 0, "patience", self.patience, "0 (never early), or a number of measurements")


@checked(frozen=True, config=STRICT)
class Stage1:
    """Pretraining (MOON, stage 1): next-token prediction from pictures and a prompt to product text, with causal attention."""

    steps: int = 0

    def __post_init__(self) -> None:
        rule(self.steps >= 0, "stage1.steps", self.steps, "0 or more (0: left out)")


@checked(frozen=True, config=STRICT)
class Stage2a:
    """Contrastive learning on behaviour (MOON, stage 2a): pair types by share, InfoNCE or MIM's three levels."""

    steps: int = 0
    events: tuple[Literal["click", "cart", "purchase"], ...] = ("click", "cart", "purchase")
    pairs: dict[str, float] = field(default_factory=dict)  # pair type → share; empty: as queries and items come, all of them
    loss: Literal["info_nce", "mim"] = "info_nce"
    within_product: float = 0.0  # weight of picture ↔ text of the same item (MOON2.0)
    sizes: tuple[int, ...] = ()  # of the pictures, over equal parts of the steps; empty: inputs.picture_size

    def __post_init__(self) -> None:
        rule(self.steps >= 0, "stage2a.steps", self.steps, "0 or more (0: left out)")
        rule(bool(self.events), "stage2a.events", self.events, f"some of {', '.join(EVENTS)}")
        for kind, share in self.pairs.items():
            rule(kind in PAIR_TYPES, "stage2a.pairs", kind, f"named as one of {', '.join(PAIR_TYPES)}")
            rule(0 <= share < math.inf, f"stage2a.pairs.{kind}", share, "0 or more, and finite")
        rule(not self.pairs or sum(self.pairs.values()) > 0, "stage2a.pairs", self.pairs, "of a positive sum")
        rule(0 <= self.within_product < math.inf, "stage2a.within_product", self.within_product, "0 or more, and finite")


@checked(frozen=True, config=STRICT)
class Stage2b:
    """Purchases only, cleaned, with harder negatives (MOON, stage 2b). Margin and scale: unknown in the paper; circle loss's own."""

    steps: int = 0
    loss: Literal["circle", "info_nce"] = "circle"
    margin: float = 0.25  # circle loss (Sun et al. 2020): what counts as similar enough
    scale: float = 32.0  # circle loss's gamma
    both_ways: bool = True  # circle loss from items to queries too, as InfoNCE has it
    least_similar: bool = True  # of several queries that led to one item, the one the previous encoder finds least similar
    spu_merge: bool = True  # SKUs of one SPU are one product: none is another's negative
    category_balance: bool = True  # resample to the category mix of exposed items
    least_entities: int = 2  # drop pairs whose query text or title names fewer; 0: keep all
    recogniser: str = ""  # of entities: spacy:DIRECTORY or spacy:PACKAGE; empty: the catalogue's own brands, categories and values
    hard_negatives: int = 0  # per pair: of the same category, the previous encoder's most similar
    hard_below: float = 0.0  # of how near its own item is to a pair's query, where a hard one must stay (NV-Retriever: .95); 0: no ceiling
    spatial: bool = True  # negatives gathered from all processes, with gradients
    queue: int = 0  # temporal negatives: item vectors of earlier steps
    learning_rate_share: float = 0.3  # of training.learning_rate: the stage refines

    def __post_init__(self) -> None:
        rule(self.steps >= 0, "stage2b.steps", self.steps, "0 or more (0: left out)")
        rule(0 <= self.margin < 1, "stage2b.margin", self.margin, "from 0, below 1")
        rule(0 < self.scale <= 1000, "stage2b.scale", self.scale, "above 0, at most 1000")
        rule(self.least_entities >= 0, "stage2b.least_entities", self.least_entities, "0 or more")
        named = not self.recogniser or (self.recogniser.startswith(SPACY) and self.recogniser != SPACY)
        rule(named, "stage2b.recogniser", self.recogniser, f"empty, or {SPACY}DIRECTORY, or {SPACY}PACKAGE")
        rule(self.hard_negatives >= 0, "stage2b.hard_negatives", self.hard_negatives, "0 or more")
        rule(0 <= self.hard_below <= 1, "stage2b.hard_below", self.hard_below, "0 (no ceiling), or a share of at most 1")
        rule(self.queue >= 0, "stage2b.queue", self.queue, "0 or more")
        rule(0 < self.learning_rate_share <= 1, "stage2b.learning_rate_share", self.learning_rate_share, "above 0, at most 1")


@checked(frozen=True, config=STRICT)
class EncoderRecipe:
    """A named encoder: ``models/<name>.toml``. Either ``checkpoint`` (a directory or a hub name) or ``vision`` and ``text`` are given."""

    name: str
    family: Literal["smolvlm", "qwen3_vl"]
    inputs: Inputs
    training: Training
    stage1: Stage1 = field(default_factory=Stage1)
    stage2a: Stage2a = field(default_factory=Stage2a)
    stage2b: Stage2b = field(default_factory=Stage2b)
    tower: Literal["vit", "conv", "efficientnet-lite0"] = "vit"  # vit: the family's own; the others stand in its place
    checkpoint: str = ""
    revision: str = ""
    vocabulary: int = 4096  # tokens; only where the tokenizer is trained on the catalogue
    scale_factor: int = 2  # pixel shuffle: patches per picture / scale_factor² = tokens per picture
    vision: dict[str, int | float | list[int]] = field(default_factory=dict)  # the family's vision configuration, or the tower's
    text: dict[str, int | float] = field(default_factory=dict)  # the family's text configuration
    experts: Experts | None = None
    lora: Lora | None = None
    frozen: Frozen | None = None
    caps: Caps = field(default_factory=Caps)  # which events make pairs
    most: Most = field(default_factory=lambda: Most(visitor=1000, item=5000, query=100))  # pairs, of each
    deduplicate: int = -1  # items and queries whose pictures' hashes differ by so many bits are twins, kept once; -1: off
    except_between: tuple[str, ...] = ()  # two times, ISO 8601 with a zone: nothing is learned from events in [first, second)

    def __post_init__(self) -> None:
        own = self.tower != "vit"
        rule(
            bool(self.checkpoint) != bool(self.text and (self.vision or own)),
            "checkpoint",
            self.checkpoint,
            "given, or else [vision] and [text]",
        )
        rule(not (self.checkpoint and own), "tower", self.tower, "vit where a checkpoint is given: it brings its own")
        rule(not (own and self.family != "smolvlm"), "tower", self.tower, "vit, or family smolvlm, whose trunk takes other towers")
        rule(self.scale_factor >= 1, "scale_factor", self.scale_factor, "at least 1")
        rule(-1 <= self.deduplicate <= 16, "deduplicate", self.deduplicate, "from -1 (off) to 16 bits")
        two = not self.except_between or _ascending(self.except_between)
        rule(two, "except_between", self.except_between, "two times with a zone, the earlier one first")
        for name, chosen in (("lora", self.lora), ("frozen", self.frozen)):
            rule(
                chosen is None or bool(self.checkpoint), name, chosen, "left out without a checkpoint: random weights are all to be trained"
            )
        rule(own or not self.stage2a.sizes, "stage2a.sizes", self.stage2a.sizes, "empty for a vit: its positions are for one size")
        twice = not (self.experts and self.training.activation_checkpointing)  # a second run would count the experts' tokens again
        rule(twice, "training.activation_checkpointing", self.training.activation_checkpointing, "false where there are [experts]")
        if not self.checkpoint:
            self._architecture()
        if self.text and self.training.prefixes:
            width = int(self.text.get("hidden_size", 0))
            rule(width > 0, "text.hidden_size", width, "given where training.prefixes are")
            rule(self.training.prefixes[-1] <= width, "training.prefixes", self.training.prefixes, f"at most text.hidden_size = {width}")

    def _architecture(self) -> None:
        shapes.check_text(self.text)
        rule(self.vocabulary >= 300, "vocabulary", self.vocabulary, "at least 300: 256 bytes and the special tokens")
        shapes.check_tower(self.tower, self.vision, self.inputs.picture_size, self.scale_factor)
        stride = self.scale_factor * shapes.stride(self.tower, self.vision)
        for size in self.stage2a.sizes:
            fits = size >= stride and size % stride == 0 and size <= self.inputs.picture_size
            rule(fits, "stage2a.sizes", size, f"a multiple of {stride} pixels, at most inputs.picture_size = {self.inputs.picture_size}")

    @property
    def excepted(self) -> tuple[dt.datetime, dt.datetime] | None:
        """[start, end) of the behaviour that is left out; None: of none."""
        if not self.except_between:
            return None
        start, end = map(dt.datetime.fromisoformat, self.except_between)
        return start, end

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.stage1.steps + self.stage2a.steps + self.stage2b.steps

    def with_steps(self, total: int) -> EncoderRecipe:
        """The same recipe with ``total`` steps, shared over its stages as they are now."""
        if total < 0:
            raise SettingsError(f"steps = {total} must be 0 or more", action="give a whole number")
        share = total / max(self.steps, 1)
        first, second = round(self.stage1.steps * share), round(self.stage2a.steps * share)
        last = total - first - second if self.stage2b.steps else 0
        second = second if self.stage2b.steps else total - first
        stages = {"stage1": first, "stage2a": second, "stage2b": last}
        return replace(self, **{name: replace(getattr(self, name), steps=steps) for name, steps in stages.items()})


def _ascending(texts: tuple[str, ...]) -> bool:
    """Whether the texts are two times with a zone, the earlier one first."""
    try:
        found = [dt.datetime.fromisoformat(text) for text in texts]
    except ValueError:
        return False
    return len(found) == 2 and all(when.tzinfo for when in found) and found[0] < found[1]
