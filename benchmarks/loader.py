"""Samples per second and memory of the encoder's loader alone, beside the same batches with all pictures decoded in memory.

A made-up lake of ``--pictures 20000`` JPEGs of 64 px (a thousand different ones, each in many files), as many items with a title and one
picture each, and as many clicks, every one after a query with another item's picture; the batches are those of moon-tiny's stage 2a at
``--size 48`` px, 128 pairs each. memory: all pixels in one array; kept: from the lake, with room for all decoded pictures; half: with room
for half of them; none: without. ``first``: no picture was seen before; ``again``: the same batches once more; ``plain``: and not augmented.
Rates by CPU-second are of one process in which the sides take turns at each batch; peaks are the kernel's, of a process for each side, with
its libraries and the catalogue, and of its largest worker. ``--steps 40`` after ``--warm 4``; ``--workers 0`` processes make the batches.
``--kinds memory,kept``; ``--place DIRECTORY`` keeps the lake; ``--json`` prints one object as the last line.
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
    """Items with a title and a picture, and for each one click after a query with a picture of its own."""
    from moon_ops.encoder.pairs import Pairs
    from moon_ops.inputs.contract import Sample

    def title(n: int) -> str:
        return f"{WORDS[n % 36]} {WORDS[n // 36 % 36]} {n} | {WORDS[n % 7]} | {WORDS[n % 11]} | made of {WORDS[n % 13]} and {WORDS[n % 17]}"

    each, none = np.arange(count), np.zeros(0, np.int64)
    items = [Sample(title(n), (name_of(n),)) for n in range(count)]
    queries = [Sample("", items[(7 * n + 3) % count].image_ids) for n in range(count)]
    known = np.stack([each, each], 1)
    return Pairs(queries, items, each, each, none, each, each, each, each, known, none, none)


class InMemory:
    """All pixels in one array [P, 1, 3, S, S], as a picture of the lake becomes them."""

    def __init__(self, count: int, size: int) -> None:
        from moon_ops.inputs.images import decode
        from moon_ops.inputs.regions import views

        different = np.stack([views(decode(content), size, "") for content in jpegs()])
        self.rows = {name_of(n): n for n in range(count)}
        self.array = different[np.arange(count) % DIFFERENT]

    def take(self, names: list[str]) -> Any:
        """As the store's."""
        import torch

        return torch.from_numpy(self.array[[self.rows[name] for name in names]].reshape(-1, *self.array.shape[2:]))


def stored(kind: str, place: Path, count: int, names: list[str]) -> Any:
    """The pixels as that side has them; what a run before has decoded is thrown away."""
    from moon_ops.encoder.pixels import PixelStore

    size = int(figures.option("size", "48"))
    if kind == "memory":
        return InMemory(count, size)
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


def measured(kinds: list[str], place: Path, count: int) -> dict[str, float]:
    """One side's rate and peak [MiB]; of several the rates by CPU-second, at first sight, once more, and once more without augmentation."""
    import torch

    from moon_ops.encoder.batches import PairBatches
    from moon_ops.encoder.model import build
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe

    torch.set_num_threads(1)
    chosen, size = recipe(EncoderRecipe, "moon-tiny", Settings.from_environment(looking=True).models), int(figures.option("size", "48"))
    chosen = replace(chosen, inputs=replace(chosen.inputs, picture_size=size), stage2a=replace(chosen.stage2a, sizes=()))
    pairs = pairs_of(count)
    names, out, began = pairs.image_ids(), {"catalogue_mib": peak()}, time.perf_counter()
    stores = {kind: stored(kind, place, count, names) for kind in kinds}
    out["find_s"], began = time.perf_counter() - began, time.perf_counter()
    del names
    encoder = build(chosen, [s.text for s in pairs.items[:2000]], 0)
    made = PairBatches(encoder, pairs, stores[kinds[0]], chosen.training, seed=(0, 2))
    out["prepare_s"] = time.perf_counter() - began
    if len(kinds) == 1:
        workers = int(figures.option("workers", "0"))
        return out | {"first_s": alone(made, workers), "again_s": alone(made, workers), "peak_mib": peak()}
    for name in ("first", "again", "plain"):
        if name == "plain":
            made.reader.training = replace(chosen.training, augment=False)
        rates = together(made, stores)
        out |= {f"{kind}_{name}_samples_cpu_s": rate for kind, rate in rates.items()}
        out |= {f"{kind}_{name}_of_memory": rate / rates["memory"] for kind, rate in rates.items()}
    return out


def peak() -> float:
    """Of this process, and of the largest of its children [MiB]."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def sides(place: Path, count: int) -> dict[str, float]:
    """All sides in one process for their rates, and each in a process of its own for its peak."""
    out: dict[str, float] = {}
    named = ("size", "steps", "warm", "workers")
    given = [word for name in named if f"--{name}" in sys.argv for word in (f"--{name}", figures.option(name, ""))]
    kinds = figures.option("kinds", ",".join(KINDS)).split(",")
    for some in [",".join(kinds)] * (len(kinds) > 1) + kinds:
        command = [sys.executable, __file__, "--one", some, str(place), str(count), *given]
        one = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        if some in kinds:
            rates = f"{one['first_s']:,.0f} samples/s, then {one['again_s']:,.0f}"
            print(f"{some:>6}: {one['peak_mib']:,.0f} MiB ({one['catalogue_mib']:,.0f} before), {rates}", flush=True)
            out |= {f"{some}_{name}": value for name, value in one.items()}
            continue
        for kind in kinds:
            passes = [(one[f"{kind}_{name}_samples_cpu_s"], one[f"{kind}_{name}_of_memory"], name) for name in ("first", "again", "plain")]
            line = ", ".join(f"{name} {rate:,.0f} ({of:.2f} of memory)" for rate, of, name in passes)
            print(f"{kind:>6}: samples a CPU-second {line}", flush=True)
        out |= one
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
        return {"pictures": count, **sides(place, count)}


if __name__ == "__main__":
    if "--one" in sys.argv:
        at = sys.argv.index("--one")
        print(json.dumps(measured(sys.argv[at + 1].split(","), Path(sys.argv[at + 2]), int(sys.argv[at + 3]))))
    else:
        figures.main(table)
