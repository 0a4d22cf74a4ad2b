"""Whether `moon serve` grows: memory, threads and open files over ``--minutes 10`` of mixed traffic.

A copy of ``MOON_HOME`` is served (run `make demo` first; without a release there, a tiny shop is made). ``--rate 40`` requests a second:
searches by picture and by text, vectors, recommendations, scores; beside them one new item and two events every five seconds, and a swap
of the release each two minutes. The first fifth, in which everything is loaded, is left out; told are the medians of the next fifth and of
the last, and the line through all samples. ``--processes 2``: those of `moon serve`. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import figures
import numpy as np
import serving
from peers import load

from moon_ops.lake.tables import image_bytes
from moon_ops.registry.registry import CHAMPION, RELEASE, Registry, manifest_of
from moon_ops.settings import Settings

MINUTES, RATE = float(figures.option("minutes", "10")), float(figures.option("rate", "40"))
EVERY, PUSH_SECONDS, SWAP_SECONDS = 5.0, 5.0, 120.0
PUSHED, TOKEN = 3 * 10**9, "soak"


def mixed(home: Settings, pictures: Sequence[bytes]) -> list[bytes]:
    """Requests of each kind, in turn."""
    items = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[:200]
    users = [user for user in home.lake.read("events", ["user_id"])["user_id"].to_pylist() if user is not None][:200]
    out = []
    for number, picture in enumerate(pictures):
        text, user = serving.TEXTS[number % len(serving.TEXTS)], users[number % len(users)]
        out.append(load.form("/v1/search", {"k": "10"}, picture))
        out.append(load.form("/v1/search", {"text": text, "k": "20"}))
        out.append(load.form("/v1/embed", {"text": text}))
        out.append(load.posted("/v1/score", {"user_id": user, "item_ids": items[number : number + 10]}))
        out.append(load.posted("/v1/recommend", {"user_id": user, "text": text, "k": 5}))
    return out


async def writing(port: int, pictures: Sequence[bytes], user: int, end: float) -> load.Answers:
    """An item and two events now and then."""
    answers, line, number = load.Answers(), load.Connection(port), 0
    while time.monotonic() < end:
        number += 1
        picture = base64.b64encode(pictures[number % len(pictures)]).decode()
        item = {"item_id": PUSHED + number, "title": f"soaked {number}", "images": [picture]}
        await line.ask(load.posted("/v1/items", {"items": [item]}, TOKEN), answers)
        now = dt.datetime.now(dt.UTC).isoformat()
        seen = [{"timestamp": now, "item_id": PUSHED + number, "event": kind, "user_id": user} for kind in ("impression", "click")]
        await line.ask(load.posted("/v1/events", {"events": seen}, TOKEN), answers)
        await asyncio.sleep(PUSH_SECONDS)
    return answers


async def swapping(home: Settings, end: float) -> int:
    """Another release of the same parts from time to time; how many."""
    registry, count = Registry(home), 0
    while time.monotonic() + SWAP_SECONDS < end:
        await asyncio.sleep(SWAP_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            manifest = {**manifest_of(registry, 1), "compared_with": {"release": 1}}
            (Path(folder) / "manifest.json").write_text(json.dumps(manifest))
            version = registry.register(RELEASE, registry.start_run("measured", {}), Path(folder), {})
        await asyncio.to_thread(registry.point, CHAMPION, version)
        count += 1
    return count


def sampled(number: int) -> tuple[float, float, float]:
    """Megabytes, threads and open files of a service with all its processes."""
    threads, files = (sum(len(list(Path(f"/proc/{one}/{what}").iterdir())) for one in serving.family(number)) for what in ("task", "fd"))
    return serving.megabytes(number), float(threads), float(files)


async def soak(port: int, number: int, home: Settings, pictures: Sequence[bytes]) -> dict[str, float]:
    """All of it at once."""
    end, samples = time.monotonic() + 60 * MINUTES, list[tuple[float, float, float]]()
    user = next(user for user in home.lake.read("events", ["user_id"])["user_id"].to_pylist() if user is not None)
    asked = asyncio.create_task(load.opened(port, mixed(home, pictures), rate=RATE, seconds=60 * MINUTES))
    writes, swaps = asyncio.create_task(writing(port, pictures, user, end)), asyncio.create_task(swapping(home, end))
    while time.monotonic() < end:
        await asyncio.sleep(EVERY)
        samples.append(sampled(number))
    answers, written = await asked, await writes
    print(f"answers: {answers.counts()}, {answers.failures} broken; writes: {written.counts()}", file=sys.stderr)
    failed = sum(count for status, count in {**answers.counts()}.items() if status >= "500") + answers.failures
    failed += sum(count for status, count in written.counts().items() if status >= "500") + written.failures
    found = {"requests": float(len(answers.seconds)), "p99_ms": answers.ms(99), "writes": float(len(written.seconds))}
    return found | {"failed": float(failed), "refused": float(answers.counts().get("429", 0)), "swaps": float(await swaps)} | grown(samples)


def grown(samples: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Medians of the second fifth and the last, and the rise of a line through all but the first fifth, an hour."""
    fifth, out = max(len(samples) // 5, 1), dict[str, float]()
    for name, values in zip(("memory_mb", "threads", "files"), np.array(samples).T, strict=True):
        kept = values[fifth:]
        hours = EVERY * np.arange(len(kept)) / 3600
        out |= {f"{name}_before": float(np.median(kept[:fifth])), f"{name}_after": float(np.median(kept[-fifth:]))}
        out[f"{name}_an_hour"] = float(np.polyfit(hours, kept, 1)[0])
    return out


def table() -> dict[str, float]:
    """Measure, and print it."""
    with tempfile.TemporaryDirectory() as folder:
        home, port = serving.home_of(Path(folder)), serving.free_port()
        wanted = [i for ids in home.lake.read("items", ["image_ids"])["image_ids"].to_pylist() for i in ids][: serving.PICTURES]
        pictures = [content for _, content in image_bytes(home.lake, wanted)]
        os.environ["MOON_ITEMS_TOKEN"] = TOKEN
        log = Path(figures.option("log", str(Path(folder) / "service.log")))
        with serving.process([sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(home.home)], port, log) as number:
            found = asyncio.run(soak(port, number, home, pictures))
    found |= {"minutes": MINUTES, "load_after": os.getloadavg()[0]}
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}")
    return found


if __name__ == "__main__":
    figures.main(table)
