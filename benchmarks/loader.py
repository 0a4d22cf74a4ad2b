"""Samples per second and memory of the encoder's loader alone, beside the same batches with all pictures decoded in memory.

A made-up lake of ``--pictures 20000`` JPEGs of 64 px (a thousand different ones, each in many files), as many items with a title and one
picture each, and as many clicks, every one after a query with another item's picture; the batches are those of moon-tiny's stage 2a at
``--size 48`` px, 128 pairs each. Each side runs in a process of its own. memory: all pixels in one array; kept: from the lake, with room
for all decoded pictures; half: with room for half of them; none: without. ``first``: no picture was seen before; ``again``: the same
batches once more; ``plain``: and not augmented. ``--steps 40`` after ``--warm 4``; ``--workers 0`` processes make the batches. Peaks are
the kernel's, of the whole process with its libraries and the catalogue, and of its largest worker. ``--place DIRECTORY`` keeps the lake;
``--json`` prints one object as the last line.
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


def timed(made: Any, workers: int) -> tuple[float, float]:
    """Samples per second, and per CPU-second of this process, over ``--steps`` after ``--warm`` more."""
    from moon_ops.encoder.loader import batches

    steps, warm = int(figures.option("steps", "40")), int(figures.option("warm", "4"))
    made.reader.masks.clear()
    seconds = cpu = 0.0
    for number, _ in enumerate(batches(made.batch, range(warm + steps), workers)):
        if number == warm - 1:
            seconds, cpu = time.perf_counter(), time.process_time()
    return BATCH * steps / (time.perf_counter() - seconds), BATCH * steps / (time.process_time() - cpu)


def measured(kind: str, place: Path, count: int) -> dict[str, float]:
    """Rates and peak [MiB] of one side: at first sight, once more, and once more without augmentation."""
    import torch

    from moon_ops.encoder.batches import PairBatches
    from moon_ops.encoder.model import build
    from moon_ops.encoder.pixels import PixelStore
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe

    size, workers = int(figures.option("size", "48")), int(figures.option("workers", "0"))
    torch.set_num_threads(1)
    chosen = recipe(EncoderRecipe, "moon-tiny", Settings.from_environment(looking=True).models)
    chosen = replace(chosen, inputs=replace(chosen.inputs, picture_size=size), stage2a=replace(chosen.stage2a, sizes=()))
    pairs = pairs_of(count)
    names, whole = pairs.image_ids(), count * 3 * size * size
    out, began = {"catalogue_mib": peak()}, time.perf_counter()
    if kind == "memory":
        store: Any = InMemory(count, size)
    else:
        for left in place.glob(f"{kind}.*"):  # of a run before
            left.unlink()
        kept = {"half": whole // 2, "none": 0}.get(kind, whole)
        store = PixelStore.over(Lake(str(place / "lake")), names, size, place / f"{kind}.u8", kept=kept)
        store.threads = 1
    out["find_s"], began = time.perf_counter() - began, time.perf_counter()
    del names
    encoder = build(chosen, [s.text for s in pairs.items[:2000]], 0)
    made = PairBatches(encoder, pairs, store, chosen.training, seed=(0, 2))
    out["prepare_s"] = time.perf_counter() - began
    for name in ("first", "again", "plain"):
        if name == "plain":
            made.reader.training = replace(chosen.training, augment=False)
        out[f"{name}_samples_s"], out[f"{name}_samples_cpu_s"] = timed(made, workers)
    return out | {"peak_mib": peak()}


def peak() -> float:
    """Of this process, and of the largest of its children [MiB]."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def sides(place: Path, count: int) -> dict[str, float]:
    """Each side in a process of its own."""
    out: dict[str, float] = {}
    given = [
        word for name in ("size", "steps", "warm", "workers") for word in (f"--{name}", figures.option(name, "")) if f"--{name}" in sys.argv
    ]
    for kind in figures.option("kinds", ",".join(KINDS)).split(","):
        command = [sys.executable, __file__, "--one", kind, str(place), str(count), *given]
        one = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        out |= {f"{kind}_{name}": value for name, value in one.items()}
        line = (
            f"{kind:>6}: {one['peak_mib']:,.0f} MiB ({one['catalogue_mib']:,.0f} before), {one['find_s']:.0f} + {one['prepare_s']:.0f} s;"
        )
        for name in ("first", "again", "plain"):
            of, there = out.get(f"memory_{'plain' if name == 'plain' else 'again'}_samples_cpu_s", 0.0), one[f"{name}_samples_cpu_s"]
            out[f"{kind}_{name}_of_memory"] = there / of if of else 0.0
            line += f" {name} {one[f'{name}_samples_s']:,.0f}/s, {there:,.0f} a CPU-second ({out[f'{kind}_{name}_of_memory']:.2f});"
        print(line, flush=True)
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
        print(json.dumps(measured(sys.argv[at + 1], Path(sys.argv[at + 2]), int(sys.argv[at + 3]))))
    else:
        figures.main(table)
