"""Peak memory of an ingest of large photographs: 2,000 JPEGs of about 3 MB, a process of its own, whose peak the kernel counts.

The pictures are noise, so that they are large and all different; they are drawn into a scratch directory beside ``MOON_HOME`` (6 GB, and
as much for the lake; both are removed). ``--pictures 200`` for a quicker look, ``--json`` prints one object as the last line. The limit
is 1 GB: it must not grow with the number of pictures.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
from PIL import Image

from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.settings import Settings

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SIDE, QUALITY = (2200, 1650), 88  # about 3 MB of noise
LIMIT_MIB = 1000**3 / 2**20


def draw(place: Path, count: int) -> int:
    """A shop of ``count`` items with a picture each; the pictures' bytes. One JPEG is drawn, and each gets a comment of its own."""
    place.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE[1], SIDE[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=QUALITY)
    content = file.getvalue()
    with (place / "items.jsonl").open("w") as items:
        for number in range(count):
            comment = f"picture {number}".encode()
            marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (place / f"{number}.jpg").write_bytes(content[:2] + marker + content[2:])
            items.write(json.dumps({"item_id": number, "title": f"thing {number}", "images": f"{number}.jpg"}) + "\n")
    return len(content)


def take_in(shop: Path, lake: Path, workers: int) -> dict[str, float]:
    """Ingest ``shop``; the peak of this process [MiB] before and after, and seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    report = ingest(shop, Lake(str(lake)), now=NOW, workers=workers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"pictures": report.images, "before_mib": before, "peak_mib": peak, "seconds": time.perf_counter() - began}


def table() -> dict[str, float]:
    """Measure, and print it."""
    count, settings = int(figures.option("pictures", "2000")), Settings.from_environment()
    settings.home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.home.parent) as folder:
        size = draw(Path(folder, "shop"), count)
        command = [sys.executable, __file__, "--ingest", folder, str(settings.workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found |= {"picture_mb": size / 1e6, "workers": settings.workers, "limit_mib": LIMIT_MIB}
    print(f"{found['pictures']:,.0f} pictures of {size / 1e6:.2f} MB, {settings.workers} workers, {found['seconds']:.0f} s")
    print(f"{found['peak_mib']:.0f} MiB at the peak, {found['before_mib']:.0f} before; the limit is {LIMIT_MIB:.0f}")
    return found


if __name__ == "__main__":
    if "--ingest" in sys.argv:  # in a process of its own
        at = sys.argv.index("--ingest")
        print(json.dumps(take_in(Path(sys.argv[at + 1], "shop"), Path(sys.argv[at + 1], "lake"), int(sys.argv[at + 2]))))
    else:
        figures.main(table)
