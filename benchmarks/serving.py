"""Requests a second and milliseconds of ``moon serve``, in a process of its own, with the load generator beside it on the same cores.

A copy of ``MOON_HOME`` is served (run `make demo` first; without a release there, a tiny shop is made). Rows: picture → 10 results, 16
clients in a closed loop, against the same model one request at a time (peer ``onnx``) and against plain FastAPI with torch (peer
``torch``); text → vector at half the capacity that was measured first, against the bare forward (the limit); a hot swap under load;
five times the capacity. ``--rows search,text`` takes some of them, ``--seconds 8`` is the length of each run, and ``--processes 2`` how
many `moon serve` has. ``--json``: one object last.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import figures
import numpy as np
from peers import load
from rollback import copied

from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import StageError
from moon_ops.lake.tables import image_bytes
from moon_ops.registry.registry import CHAMPION, ENCODER, RELEASE, Registry, manifest_of
from moon_ops.settings import Settings

CLIENTS, TURNS, PICTURES, WAIT_SECONDS = 16, 3, 64, 180.0
SECONDS = float(figures.option("seconds", "8"))
ROWS = figures.option("rows", "search,text,swap,overload").split(",")
PROCESSES = figures.option("processes", "1")
TEXTS = ["red summer dress", "brass table lamp", "ceramic mug", "running shoes", "wooden chair", "black leather bag"]


@contextmanager
def process(words: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """A service in a process of its own, ready to answer; its number."""
    with log.open("w") as file:
        service = subprocess.Popen(words, env={**os.environ, "MOON_PORT": str(port), "MOON_PROCESSES": PROCESSES}, stdout=file, stderr=file)
        try:
            _wait(port, "/ready" if "serve" in words or "ours" in words else "/openapi.json", service, log)
            yield service.pid
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(60)


def _wait(port: int, path: str, service: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and service.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
            return
        except OSError:
            time.sleep(0.2)
    raise StageError(f"{log} has not become ready: {log.read_text()[-500:]}", action="look at the lines above")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def search(port: int, number: int, home: Settings, requests: Sequence[bytes], scratch: Path) -> dict[str, float]:
    """Picture → 10 results: the paths take turns, best of :data:`TURNS`."""
    best, spent = dict[str, load.Answers](), dict[str, list[float]]()
    with ExitStack() as stack:
        ports, numbers = {"ours": port}, {"ours": number}
        for kind in ("onnx", "torch"):
            ports[kind] = free_port()
            words = [sys.executable, str(Path(__file__).parent / "peers" / "plain.py"), kind, str(home.home), str(ports[kind])]
            numbers[kind] = stack.enter_context(process(words, ports[kind], scratch / f"{kind}.log"))
        for _ in range(TURNS):
            for name, at in ports.items():
                asyncio.run(load.closed(at, requests, clients=CLIENTS, seconds=1))
                before = cpu(numbers[name])
                found = asyncio.run(load.closed(at, requests, clients=CLIENTS, seconds=SECONDS))
                spent.setdefault(name, []).append(1e3 * (cpu(numbers[name]) - before) / len(found.seconds))
                best[name] = max(best.get(name, found), found, key=load.Answers.rate)
                print(f"{name:6} {found.rate():6.0f} requests/s, p50 {found.ms(50):.1f} ms, p99 {found.ms(99):.1f} ms", file=sys.stderr)
        alone = asyncio.run(load.closed(port, requests, clients=1, seconds=SECONDS))
    found = {f"search_{name}_per_s": answers.rate() for name, answers in best.items()}
    found |= {f"search_{name}_p99_ms": answers.ms(99) for name, answers in best.items()}
    found |= {f"search_{name}_cpu_ms": float(np.median(ms)) for name, ms in spent.items()}
    found |= {"search_one_client_per_s": alone.rate(), "search_one_client_p50_ms": alone.ms(50)}
    return found | {f"search_ratio_{kind}": best["ours"].rate() / best[kind].rate() for kind in ("onnx", "torch")}


def text(port: int, runtime: Runtime) -> dict[str, float]:
    """Text → vector at half the capacity; the limit is the forward alone, of a text as long, in this process."""
    requests = [load.form("/v1/embed", {"text": one}) for one in TEXTS]
    capacity = asyncio.run(load.closed(port, requests, clients=CLIENTS, seconds=SECONDS)).rate()
    half = asyncio.run(load.opened(port, requests, rate=capacity / 2, seconds=SECONDS))
    alone = asyncio.run(load.closed(port, requests, clients=1, seconds=SECONDS / 2))
    batches = [runtime.batch(runtime.tokenize([one]), [[]]) for one in TEXTS]
    bare = []
    for turn in range(600):
        began = time.perf_counter()
        runtime.forward(batches[turn % len(batches)])
        bare.append(1e3 * (time.perf_counter() - began))
    found = {"text_capacity_per_s": capacity, "text_half_p50_ms": half.ms(50), "text_half_p99_ms": half.ms(99)}
    found |= {"text_one_client_p50_ms": alone.ms(50), "text_forward_p50_ms": float(np.median(bare))}
    found |= {"text_forward_p99_ms": float(np.percentile(bare, 99))}
    return found | {"text_ratio": half.ms(99) / found["text_forward_p50_ms"]}


def swap(port: int, home: Settings, requests: Sequence[bytes], rate: float) -> dict[str, float]:
    """The alias moves to another release of the same parts while searches go on at half the capacity."""
    registry = Registry(home)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_text(json.dumps({**manifest_of(registry, 1), "compared_with": {"release": 1}}))
        second = registry.register(RELEASE, registry.start_run("measured", {}), Path(folder), {})

    async def run() -> tuple[load.Answers, float]:
        stop = asyncio.Event()
        going = asyncio.create_task(load.opened(port, requests, rate=rate / 2, seconds=2 * SECONDS + WAIT_SECONDS, stop=stop))
        await asyncio.sleep(2 * SECONDS)
        moved = time.monotonic()
        await asyncio.to_thread(registry.point, CHAMPION, second)
        while time.monotonic() - moved < WAIT_SECONDS:
            await asyncio.sleep(0.2)
            if json.loads(await load.Connection(port).ask(load.got("/ready"), load.Answers()))["release"] == second:
                break
        await asyncio.sleep(2)
        stop.set()
        return await going, moved

    answers, moved = asyncio.run(run())
    first_new = next((at for at, release in zip(answers.at, answers.releases, strict=False) if release == second), None)
    if first_new is None:
        raise StageError(
            f"release {second} did not answer within {WAIT_SECONDS:g} seconds", action="look at the service's log (--log FILE)"
        )
    seconds, at = np.array(answers.seconds), np.array(answers.at)
    before, during = seconds[at < moved], seconds[(at >= moved) & (at <= first_new + 1)]
    counts = answers.counts()
    refused = counts.pop("429", 0)  # told to come again: there was no room for a moment
    failed = sum(counts.values()) - len(answers.good()) + answers.failures
    found = {
        "swap_failed": float(failed),
        "swap_refused": float(refused),
        "swap_requests": float(len(answers.seconds)),
        "swap_s": first_new - moved,
    }
    found |= {"swap_before_p99_ms": 1e3 * float(np.percentile(before, 99)), "swap_during_p99_ms": 1e3 * float(np.percentile(during, 99))}
    return found | {"swap_ratio": found["swap_during_p99_ms"] / found["swap_before_p99_ms"]}


def overload(port: int, number: int, requests: Sequence[bytes]) -> dict[str, float]:
    """Five times the capacity, while ``/health`` is asked twenty times a second."""
    normal = asyncio.run(load.closed(port, requests, clients=CLIENTS, seconds=SECONDS))
    before = megabytes(number)

    async def run() -> tuple[load.Answers, load.Answers, float]:
        stop, most = asyncio.Event(), 0.0
        probing = asyncio.create_task(load.probed(port, "/health", every=0.05, stop=stop))
        going = asyncio.create_task(load.opened(port, requests, rate=5 * normal.rate(), seconds=SECONDS))
        while not going.done():
            most = max(most, megabytes(number))
            await asyncio.sleep(0.2)
        stop.set()
        return await going, await probing, most

    found, health, most = asyncio.run(run())
    print(f"overload: {found.counts()}, {found.failures} broken; health {health.counts()}", file=sys.stderr)
    told = {"offered_per_s": 5 * normal.rate(), "accepted_per_s": found.rate(), "normal_p99_ms": normal.ms(99), "p99_ms": found.ms(99)}
    told |= {"ratio": found.ms(99) / normal.ms(99), "broken": float(found.failures), "health_p99_ms": health.ms(99)}
    told |= {"health_most_ms": health.ms(100), **{status: float(count) for status, count in found.counts().items()}}
    told |= {"memory_before_mb": before, "memory_most_mb": most, "memory_after_mb": megabytes(number)}
    return {f"overload_{name}": value for name, value in told.items()}


def cpu(number: int) -> float:
    """Seconds of processor time that a process and its children have taken: it tells more than the clock where other work goes on."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(number)]
    return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")


def megabytes(number: int) -> float:
    """Memory of a process and its children; what several of them share counts once."""
    shares = [Path(f"/proc/{one}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0] for one in family(number)]
    return sum(map(int, shares)) / 2**10


def family(number: int) -> list[int]:
    """A process and its children."""
    return [number, *map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())]


def home_of(scratch: Path) -> Settings:
    """A copy of ``MOON_HOME``, or a small shop of its own where nothing is released."""
    given = Settings.from_environment()
    if (given.home / "mlflow.db").is_file() and Registry(given).alias(CHAMPION):
        return copied(given, scratch / "home")
    print("MOON_HOME holds no release: a tiny shop is made", file=sys.stderr)
    words = ["demo", "--size", "tiny", "--encoder", "moon-nano", "--home", str(scratch / "home")]
    subprocess.run([sys.executable, "-m", "moon_ops.cli", *words], check=True, capture_output=True)
    return Settings(home=scratch / "home")


def table() -> dict[str, float]:
    """Measure, and print it."""
    found: dict[str, float] = {"processes": float(PROCESSES), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        home, port, log = home_of(scratch), free_port(), Path(figures.option("log", str(scratch / "ours.log")))
        wanted = [i for ids in home.lake.read("items", ["image_ids"])["image_ids"].to_pylist() for i in ids][:PICTURES]
        requests = [load.form("/v1/search", {"k": "10"}, content) for _, content in image_bytes(home.lake, wanted)]
        registry = Registry(home)
        runtime = Runtime(registry.fetch(ENCODER, manifest_of(registry, registry.alias(CHAMPION) or 1)["encoder"]["version"]))
        with process([sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(home.home)], port, log) as number:
            capacity = asyncio.run(load.closed(port, requests, clients=CLIENTS, seconds=SECONDS)).rate()
            for name, row in (
                ("search", lambda: search(port, number, home, requests, scratch)),
                ("text", lambda: text(port, runtime)),
                ("overload", lambda: overload(port, number, requests)),
                ("swap", lambda: swap(port, home, requests, capacity)),
            ):
                found |= row() if name in ROWS else {}
    found["load_after"] = os.getloadavg()[0]
    for name, value in found.items():
        print(f"{name:32} {value:10.2f}")
    return found


if __name__ == "__main__":
    figures.main(table)
