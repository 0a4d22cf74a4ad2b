"""Samples per second and memory of the encoder's loader alone, beside the same batches with all pictures decoded in memory.

A made-up lake of ``--pictures 20000`` JPEGs of 64 px (a thousand different ones, each in many files), as many items with a title and one
picture each, and as many clicks, every one after a query with another item's picture; the batches are those of moon-tiny's stage 2a at
``--size 48`` px, 128 pairs each. memory: all pixels in one array; kept: from the lake, with room for all decoded pictures; half: with room
for half of them; none: without. ``first``: no picture was seen before; ``again``: the same batches once more; ``plain``: and not augmented.
Rates by CPU-second are of one process in which the sides take turns at each batch; peaks are the kernel's, of a process for each side, with
its libraries and the catalogue, and of its largest worker. ``--steps 40`` after ``--warm 4``; ``--workers 0`` processes make the batches.
``--kinds memory,kept``; ``--place DIRECTORY`` keeps the lake; ``--json`` prints one object as the last line.

``--whole``: CPU-seconds from the catalogue's files until the end of 1, 2 and 5 epochs, for which the array in memory is read and decoded,
too. ``--epochs 1`` are run; of later ones each takes what ``--steps`` batches after them say. Of ``--epochs 0`` the first one is reckoned:
what a picture takes at first sight, times all pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pyarrow as pa

from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.settings import Settings

KINDS = ("memory", "kept", "half", "none")
DIFFERENT, CHUNK, BATCH = 1000, 10_000, 128
WORDS = [f"{a}{b}" for a in ("lam", "tab", "cha", "mir", "rug", "vas") for b in ("p", "le", "ir", "ror", "o", "e")]


def jpegs() -> list[bytes]:
    """Pictures of a coloured thing before a plain backdrop, as shops take them."""
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        drawn = np.full((64, 64, 3), 250, np.uint8)
        low, high = rng.integers(8, 20, 2), rng.integers(40, 56, 2)
        drawn[low[0] : high[0], low[1] : high[1]] = rng.integers(0, 200, (high[0] - low[0], high[1] - low[1], 1)) // 3 + rng.integers(
            0, 160, 3
        )
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def name_of(number: int) -> str:
    """The id of a picture."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def its_own(content: bytes, number: int) -> bytes:
    """The same picture with a comment of its own: no two files of a shop are the same bytes, which a table would store once."""
    return content[:2] + b"\xff\xfe\x00\x22" + hashlib.sha256(number.to_bytes(8)).digest() + content[2:]


def fill(lake: Lake, count: int) -> None:
    """The lake's pictures, a chunk in memory at a time."""
    different, schema = jpegs(), pa.schema([SCHEMAS["images"].field(name) for name in ("image_id", "bytes")])
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        rows = pa.table([[name_of(n) for n in numbers], [its_own(different[n % DIFFERENT], n) for n in numbers]], schema=schema)
        for field in list(SCHEMAS["images"])[2:]:
            rows = rows.append_column(field, pa.nulls(len(numbers), field.type))
        lake.append("images", rows)


def pairs_of(count: int) -> Any:
    """Items with a title and a picture, and for each one click after a query with a picture of its own; mapped, as training has them."""
    from moon_ops.encoder.material import Material
    from moon_ops.encoder.pairs import Pairs
    from moon_ops.encoder.samples import Samples
    from moon_ops.inputs.contract import Sample

    def title(n: int) -> str:
        return f"{WORDS[n % 36]} {WORDS[n // 36 % 36]} {n} | {WORDS[n % 7]} | {WORDS[n % 11]} | made of {WORDS[n % 13]} and {WORDS[n % 17]}"

    each, none = np.arange(count), np.zeros(0, np.int64)
    items = Samples.of(Sample(title(n), (name_of(n),)) for n in range(count))
    queries = Samples.of(Sample("", (name_of((7 * n + 3) % count),)) for n in range(count))
    known = np.stack([each, each], 1)
    pairs = Pairs(queries, items, each, each, none, each, each, each, each, known, none, none)
    with tempfile.TemporaryDirectory() as scratch:  # what is mapped stays there
        Material(pairs, 0, pa.table({})).write(Path(scratch) / "material")
        return Material.read(Path(scratch) / "material").pairs


class InMemory:
    """All pixels in one array [P, 1, 3, S, S], as a picture of the lake becomes them."""

    def __init__(self, array: Any) -> None:
        self.rows, self.array = {name_of(n): n for n in range(len(array))}, array

    @classmethod
    def repeated(cls, count: int, size: int) -> InMemory:
        """Of the thousand that differ: the same pixels in a second or two."""
        return cls(np.stack([decoded(content, size) for content in jpegs()])[np.arange(count) % DIFFERENT])

    @classmethod
    def made(cls, lake: Lake, names: Any, size: int) -> InMemory:
        """As a training would make it: every picture read and decoded."""
        from moon_ops.encoder.encoded import Pictures
        from moon_ops.encoder.samples import some_at_a_time

        pictures, found = Pictures.find(lake, names), cls(np.empty((len(names), 1, 3, size, size), np.uint8))
        for some in some_at_a_time(names):
            for name, content in pictures.read(some):
                found.array[found.rows[name]] = decoded(content, size)
        return found

    def take(self, names: list[str]) -> Any:
        """As the store's."""
        import torch

        return torch.from_numpy(self.array[[self.rows[name] for name in names]].reshape(-1, *self.array.shape[2:]))


def decoded(content: bytes, size: int) -> Any:
    """A picture's pixels [1, 3, S, S]."""
    from moon_ops.inputs.images import decode
    from moon_ops.inputs.regions import views

    return views(decode(content), size, "")


def stored(kind: str, place: Path, count: int, names: Any) -> Any:
    """The pixels as that side has them; what a run before has decoded is thrown away."""
    from moon_ops.encoder.pixels import PixelStore

    size = int(figures.option("size", "48"))
    if kind == "memory":
        return InMemory.made(Lake(str(place / "lake")), names, size) if "--whole" in sys.argv else InMemory.repeated(count, size)
    for left in place.glob(f"{kind}.*"):
        left.unlink()
    whole = count * 3 * size * size
    kept = {"half": whole // 2, "none": 0}.get(kind, whole)
    store = PixelStore.over(Lake(str(place / "lake")), names, size, place / f"{kind}.u8", kept=kept)
    store.threads = 1
    return store


def together(made: Any, stores: dict[str, Any]) -> dict[str, float]:
    """CPU-seconds that each side takes for the same batches, in turns, so that a busy machine is as busy for all."""
    steps, warm = int(figures.option("steps", "40")), int(figures.option("warm", "4"))
    spent, masks = dict.fromkeys(stores, 0.0), {kind: type(made.reader.masks)() for kind in stores}
    for number in range(warm + steps):
        for kind, store in stores.items():
            made.reader.store, made.reader.masks = store, masks[kind]
            began = time.process_time()
            made.batch(number)
            spent[kind] += time.process_time() - began if number >= warm else 0.0
    return {kind: BATCH * steps / seconds for kind, seconds in spent.items()}


def alone(made: Any, workers: int) -> float:
    """Samples per second of the loader itself, in which workers make batches if there are any."""
    from moon_ops.encoder.loader import batches

    steps, warm, began = int(figures.option("steps", "40")), int(figures.option("warm", "4")), 0.0
    made.reader.masks.clear()
    for number, _ in enumerate(batches(made.batch, range(warm + steps), workers)):
        began = time.perf_counter() if number == warm - 1 else began
    return BATCH * steps / (time.perf_counter() - began)


def prepared(kinds: list[str], place: Path, count: int) -> tuple[Any, dict[str, Any], dict[str, float]]:
    """The batches as training makes them, the pixels of each side, and CPU-seconds of both."""
    import torch

    from moon_ops.encoder.batches import PairBatches
    from moon_ops.encoder.model import build
    from moon_ops.encoder.texts import Words
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe

    torch.set_num_threads(1)
    chosen, size = recipe(EncoderRecipe, "moon-tiny", Settings.from_environment(looking=True).models), int(figures.option("size", "48"))
    chosen = replace(chosen, inputs=replace(chosen.inputs, picture_size=size), stage2a=replace(chosen.stage2a, sizes=()))
    pairs = pairs_of(count)
    out, began = {"catalogue_mib": peak()}, time.process_time()
    stores = {kind: stored(kind, place, count, pairs.image_ids()) for kind in kinds}
    out["find_s"], began = time.process_time() - began, time.process_time()
    encoder = build(chosen, [s.text for s in pairs.items[:2000]], 0)
    with tempfile.TemporaryDirectory() as scratch:
        Words.of(encoder, pairs.queries, pairs.items).write(Path(scratch))
        pairs = replace(pairs, words=Words.read(Path(scratch)))
    made = PairBatches(encoder, pairs, stores[kinds[0]], chosen.training, seed=(0, 2))
    out["prepare_s"] = time.process_time() - began
    return made, stores, out


def whole(place: Path, kind: str, count: int) -> dict[str, float]:
    """CPU-seconds of one side until the first batch, and from the beginning to the end of 1, 2 and 5 epochs."""
    made, stores, out = prepared([kind], place, count)
    begin, epoch = out["find_s"] + out["prepare_s"], count // BATCH
    steps, run = int(figures.option("steps", "40")), int(figures.option("epochs", "1"))

    def spent(numbers: range) -> float:
        began = time.process_time()
        for number in numbers:
            made.batch(number)
        return time.process_time() - began

    ends = [begin]
    for number in range(run):
        ends.append(ends[-1] + spent(range(number * epoch, (number + 1) * epoch)))
    first = 0.0 if run else spent(range(steps))  # nobody has seen a picture of these
    if not run:
        made.reader.masks.clear()  # few of a large catalogue's are kept
    later = spent(range(steps) if not run else range(run * epoch, run * epoch + steps)) / steps
    if not run:
        shown = np.count_nonzero(stores[kind].sums) if kind != "memory" else count
        ends.append(begin + later * epoch + (first - later * steps) * (count / shown if kind != "memory" else 0))
    while len(ends) < 6:
        ends.append(ends[-1] + later * epoch)
    return out | {"begin_s": begin, **{f"epochs_{n}_s": ends[n] for n in (1, 2, 5)}, "whole_peak_mib": peak()}


def measured(kinds: list[str], place: Path, count: int) -> dict[str, float]:
    """One side's rate and peak [MiB]; of several the rates by CPU-second, at first sight, once more, and once more without augmentation."""
    made, stores, out = prepared(kinds, place, count)
    if len(kinds) == 1:
        workers = int(figures.option("workers", "0"))
        return out | {"first_s": alone(made, workers), "again_s": alone(made, workers), "peak_mib": peak()}
    for name in ("first", "again", "plain"):
        if name == "plain":
            made.reader.training = replace(made.training, augment=False)
        rates = together(made, stores)
        out |= {f"{kind}_{name}_samples_cpu_s": rate for kind, rate in rates.items()}
        out |= {f"{kind}_{name}_of_memory": rate / rates["memory"] for kind, rate in rates.items()}
    return out


def peak() -> float:
    """Of this process, and of the largest of its children [MiB]."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def one(place: Path, kind: str, count: int) -> dict[str, float]:
    """What a process for that side alone says."""
    named = ("size", "steps", "warm", "workers", "epochs")
    given = [word for name in named if f"--{name}" in sys.argv for word in (f"--{name}", figures.option(name, ""))]
    command = [sys.executable, __file__, "--one", kind, str(place), str(count), *given, *["--whole"] * ("--whole" in sys.argv)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    return found


def sides(place: Path, count: int) -> dict[str, float]:
    """All sides in one process for their rates, and each in a process of its own for its peak."""
    out: dict[str, float] = {}
    kinds = figures.option("kinds", ",".join(KINDS)).split(",")
    for some in [",".join(kinds)] * (len(kinds) > 1) + kinds:
        found = one(place, some, count)
        if some in kinds:
            rates = f"{found['first_s']:,.0f} samples/s, then {found['again_s']:,.0f}"
            print(f"{some:>6}: {found['peak_mib']:,.0f} MiB ({found['catalogue_mib']:,.0f} before), {rates}", flush=True)
            out |= {f"{some}_{name}": value for name, value in found.items()}
            continue
        for kind in kinds:
            passes = [
                (found[f"{kind}_{name}_samples_cpu_s"], found[f"{kind}_{name}_of_memory"], name) for name in ("first", "again", "plain")
            ]
            line = ", ".join(f"{name} {rate:,.0f} ({of:.2f} of memory)" for rate, of, name in passes)
            print(f"{kind:>6}: samples a CPU-second {line}", flush=True)
        out |= found
    return out


def wholes(place: Path, count: int) -> dict[str, float]:
    """The whole time of each side."""
    out: dict[str, float] = {}
    for kind in figures.option("kinds", "memory,kept").split(","):
        found = one(place, kind, count)
        passes = ", ".join(f"{found[f'epochs_{n}_s']:,.1f} after {n}" for n in (1, 2, 5))
        print(f"{kind:>6}: CPU-seconds {found['begin_s']:,.1f} until the first batch, epochs: {passes}; {found['whole_peak_mib']:,.0f} MiB")
        out |= {f"{kind}_{name}": value for name, value in found.items()}
    return out


def table() -> dict[str, float]:
    """Make the lake up, and measure."""
    count = int(figures.option("pictures", "20000"))
    kept = figures.option("place", "")
    with tempfile.TemporaryDirectory(dir=kept or None) as scratch:
        place = Path(kept or scratch)
        if not (place / "lake").exists():
            began = time.perf_counter()
            fill(Lake(str(place / "lake")), count)
            print(f"{count:,} pictures made up in {time.perf_counter() - began:.0f} s", flush=True)
        return {"pictures": count, **(wholes if "--whole" in sys.argv else sides)(place, count)}


if __name__ == "__main__":
    if "--one" in sys.argv:
        kind, at, number = sys.argv[sys.argv.index("--one") + 1 :][:3]
        print(json.dumps(whole(Path(at), kind, int(number)) if "--whole" in sys.argv else measured(kind.split(","), Path(at), int(number))))
    else:
        figures.main(table)
