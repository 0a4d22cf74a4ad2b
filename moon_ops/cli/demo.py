"""``moon demo``: the whole loop in front of the user's eyes, from a raw catalogue to a promoted release that answers over HTTP.

Nothing here is special to the demo: each step calls the stage that its command, its DAG task and its test call.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from moon_ops import metric_names
from moon_ops.cli import sentences
from moon_ops.cli.terminal import wish
from moon_ops.errors import GateError, InputError
from moon_ops.files import required, write_text
from moon_ops.metric_names import GAIN, ID_ONLY, IMAGE_SEARCH, KS, LEAKED, ORACLE, TEXT_SEARCH, ctr, is_whole_recall, recall
from moon_ops.publication import publication
from moon_ops.settings import ROOT, Settings

if TYPE_CHECKING:
    from moon_ops.encoder.budget import Budget
    from moon_ops.release.manifest import Release

SHOP_SEED = 0  # the shop stays the same when the training's seed changes
FOLLOWING = 100  # steps of moon-tiny take as long as all that comes after training (2 cores, AVX2, float32)
CHECKOUT = (".venv/bin/moon", "make serve", "make airflow", "make demo")
INSTALLED = ("moon", "moon serve", "python -m moon_ops.cli.standalone", "moon demo")


@dataclass(frozen=True)
class Choices:
    """What a user may choose: the shop (``data``: its directory; else a simulated one), the training, and how long it all may take."""

    data: Path | None = None
    size: str = "demo"
    days: int | None = None
    seed: int = 0
    encoder: str = "moon-tiny"
    trained_until: dt.datetime | None = None
    minutes: float | None = None
    changes: tuple[str, ...] = ()  # of the encoder's recipe

    def again(self, made: bool) -> list[str]:
        """The words that ask for the next seed on the same shop, as `make` takes them or as options."""
        plain = Choices()
        words = {"data": self.data and str(self.data), "size": self.size, "days": self.days, "encoder": self.encoder, "seed": self.seed + 1}
        found = {name: str(word) for name, word in words.items() if word != getattr(plain, name)}
        return [f"{name.upper()}={word}" if made else f"--{name} {word}" for name, word in found.items()]

    def require_sound(self, settings: Settings) -> None:
        """Look at what training will ask for before a shop is drawn: :class:`SettingsError` or :class:`InputError`."""
        from moon_ops.encoder.budget import Budget
        from moon_ops.recipes.encoder import EncoderRecipe
        from moon_ops.recipes.reading import recipe

        recipe(EncoderRecipe, self.encoder, settings.models, changes=self.changes)
        Budget(self.minutes)


@dataclass
class Steps:
    """Numbers the steps, says what each does and where it wrote, and how long it took."""

    console: Console
    total: int
    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[list[str]]:
        """Announce a step; lines appended to the list are its result."""
        self.number += 1
        self.console.print(f"\n[bold]\\[{self.number}/{self.total}] {name}[/bold]: {what}")
        started, results = time.perf_counter(), list[str]()
        yield results
        self.seconds[name] = time.perf_counter() - started
        for line in results:
            self.console.print(f"    {line}", highlight=False)
        self.console.print(f"    [dim]{self.seconds[name]:.1f} s[/dim]", highlight=False)


def run(settings: Settings, chosen: Choices, *, now: dt.datetime) -> None:
    """Run all stages on a shop's directory, or on a simulated shop; raises :class:`GateError` if the release did not pass its gates."""
    console = Console(stderr=False, soft_wrap=True)
    steps = Steps(console, 10)
    started = time.perf_counter()
    chosen.require_sound(settings)
    shop = _shop(settings, steps, chosen)
    from moon_ops.encoder.budget import Budget
    from moon_ops.release.windows import windows

    _ingest(settings, steps, shop, now, own=chosen.data is not None)
    times = windows(settings.lake, trained_until=chosen.trained_until)
    left = Budget(chosen.minutes, spent=time.perf_counter() - started, following=FOLLOWING)
    version = _encoder(settings, steps, chosen, times, left)
    _vectors(settings, steps, version, now)
    untrained = _untrained(settings, steps, chosen, times)
    ctr_version, baseline = _click_models(settings, steps, version, times, chosen.seed)
    zero = {metric_names.untrained(name): value for name, value in untrained.items() if is_whole_recall(name)}
    with steps.step("release", "recall and AUC on what came after training, judged against the gates") as say:
        beside = {"baseline": baseline, "oracle": shop / "oracle.parquet", "figures": zero}
        made = _release(settings, say, version, ctr_version, times, now, beside)
    if made.passed:
        _serve_and_report(settings, steps, version, times, untrained, made)
    _summary(console, made.metrics, made.champion_metrics, made.champion, time.perf_counter() - started)
    _try_next(console, settings, chosen)
    if not made.passed:
        from moon_ops.release.gates import sentence

        failed = next(v for v in made.verdicts if v.stops)
        raise GateError(
            f"release {made.version} was not promoted: {sentence(asdict(failed))}",
            action="bring more data, or look at the figures above",
        )


def _encoder(settings: Settings, steps: Steps, chosen: Choices, times: Any, left: Budget) -> int:
    """Train and export; the version of ``moon-encoder``."""
    from moon_ops.release import stages

    until = times.trained_until
    with steps.step("train", f"encoder {chosen.encoder} on purchases before {until:%Y-%m-%d %H:%M}, seed {chosen.seed}") as say:
        trained = stages.train(settings, chosen.encoder, trained_until=until, seed=chosen.seed, budget=left, changes=chosen.changes)
        say.append(f"loss {trained.last_loss:.3f}; wrote {trained.checkpoint}")
    with steps.step("export", "to ONNX, compared with the model it came from, registered in MLflow") as say:
        version = stages.export(settings, Path(trained.checkpoint)).encoder
        say.append(f"moon-encoder {version}, contract {stages.runtime(settings, version).contract_id}")
    return version


def _vectors(settings: Settings, steps: Steps, version: int, now: dt.datetime) -> None:
    """Embed and publish."""
    from moon_ops.release import stages

    with steps.step("embed", "every item and query through ONNX Runtime into the lake") as say:
        for report in stages.embed(settings, version, now=now):
            say.append(f"{report.embedded:,} new, {report.total:,} in all; wrote {settings.lake.address(report.table)}")
    with steps.step("publish", "statistics, Feast (apply, materialise), representation tables, index") as say:
        published = publication.publish(settings, version, now=now)
        say.append(f"{published.items:,} items, {published.queries:,} queries; index {published.index}")


def _untrained(settings: Settings, steps: Steps, chosen: Choices, times: Any) -> dict[str, float]:
    """The recall of random weights."""
    from moon_ops.release import evaluation

    with steps.step("untrained", "recall of the same encoder with random weights, the zero point") as say:
        untrained = evaluation.evaluate_untrained(settings, chosen.encoder, times, seed=chosen.seed, changes=chosen.changes).metrics
        found = {name: untrained[recall(name)] for name in (IMAGE_SEARCH, TEXT_SEARCH) if recall(name) in untrained}
        say.append(", ".join(f"{name.replace('_', ' ')} recall@10 {value:.3f}" for name, value in found.items()) or "no query to judge by")
        if leaked := int(untrained.get(LEAKED, 0)):
            say.append(f"{leaked} photographs have a near-identical twin in training and are left out")
    return untrained


def _release(
    settings: Settings, say: list[str], encoder: int, ctr: int | None, times: Any, now: dt.datetime, beside: dict[str, Any]
) -> Release:
    """Judge and register."""
    from moon_ops.release import evidence, manifest

    made = manifest.release(settings, encoder, ctr, times, now=now, shown=manifest.Beside(**beside))
    say += evidence.lines([asdict(v) for v in made.verdicts])
    if not made.passed:
        say.append(f"release {made.version} is registered and not promoted; report: {made.report_at or 'none, see the log'}")
    return made


def _shop(settings: Settings, steps: Steps, chosen: Choices) -> Path:
    """The directory to ingest; a lake that was filled from another shop is refused, because ids of two shops mean different things."""
    data, size = chosen.data, chosen.size
    shop = data.absolute() if data is not None else settings.home / f"shop-{size}"
    marker = settings.home / "demo.json"
    action = f"remove it if {shop} is the shop that was ingested here, else set MOON_HOME to another directory"
    if data is not None and not data.is_dir():
        raise InputError(f"DATA = {data} is not a directory", action="name a directory that holds an items file")
    if marker.is_file() and (known := required(marker, action).get("shop")) != str(shop):
        raise InputError(
            f"MOON_HOME = {settings.home} holds the shop of {known}, not of {shop}", action="set MOON_HOME to another directory"
        )
    if data is None and not marker.is_file() and settings.lake.exists("items"):
        raise InputError(f"MOON_HOME = {settings.home} holds another shop: they would be mixed", action="set MOON_HOME to another one")
    settings.home.mkdir(parents=True, exist_ok=True)
    with steps.step("shop", f"a simulated shop of size {size}" if data is None else f"the shop in {data}") as say:
        if data is None:
            from moon_ops.shops.simulate import simulate

            made = simulate(shop, size=size, seed=SHOP_SEED, days=chosen.days, workers=settings.workers)
            say.append(f"{made.items:,} items, {made.users:,} users, {made.days} days")
            say.append(
                f"{made.impressions:,} impressions, {made.clicks:,} clicks, {made.purchases:,} purchases, {made.pictures:,} pictures"
            )
        say.append(f"{'wrote' if data is None else 'reads'} {shop}")
    write_text(marker, json.dumps({"shop": str(shop)}) + "\n")
    return shop


def _ingest(settings: Settings, steps: Steps, shop: Path, now: dt.datetime, own: bool) -> None:
    """Take the shop in; of one's ``own`` it is said at once what a later stage will miss."""
    from moon_ops.lake.checking import check
    from moon_ops.lake.ingest import ingest

    lacking = check(shop, now=now).lacking if own else {}
    with steps.step("ingest", "check every row, store each picture once, add what is new to the lake") as say:
        report = ingest(shop, settings.lake, now=now, workers=settings.workers)
        say.extend(sentences.ingested(report))
        if report.first_refusal:
            say.append(f"the first: {report.first_refusal}")
        say.append(f"wrote {settings.lake.uri}")
        say.extend(f"missing for {stage}: {what}" for stage, what in lacking.items())


def _click_models(settings: Settings, steps: Steps, encoder: int, times: Any, seed: int) -> tuple[int | None, Path | None]:
    """Train the ID-only baseline and CUBE; nothing for a shop without click sequences."""
    from moon_ops.ctr.impressions import has_click_sequences
    from moon_ops.release import clicks

    with steps.step("ctr", f"ID-only DIN and CUBE on impressions before {times.ctr_until:%Y-%m-%d %H:%M}, through the Feast SDK") as say:
        if not has_click_sequences(settings.lake):
            say.append("skipped: the shop has no click sequences of known users; the release has no click model")
            return None, None
        baseline, _ = clicks.train_ctr(settings, encoder, "ctr-din", times, seed=seed, register=False)
        directory, version = clicks.train_ctr(settings, encoder, "ctr-cube", times, seed=seed)
        say.append(f"moon-ctr {version}; wrote {directory}")
        return version, baseline


def _serve_and_report(settings: Settings, steps: Steps, encoder: int, times: Any, untrained: dict[str, float], made: Release) -> None:
    """Ask the release over HTTP, promote it if it answers, and add the answers and the charts to its report."""
    from moon_ops.cli.trial import searches
    from moon_ops.registry.registry import RELEASE, Registry
    from moon_ops.release import page, pictures, promotion

    with steps.step("serve", "ask the release over HTTP, promote it, and add the answers to its report") as say:
        place = settings.home / "report"
        shutil.rmtree(place, ignore_errors=True)  # of the release before
        place.mkdir(parents=True)
        found, latency = searches(settings, encoder, times, release=made.version)
        before = promotion.promote(settings, made.version, wish("moon demo")).before
        say.append(f"release {made.version} is champion now" + (f", release {before} is previous" if before else ""))
        pictures.grid(found, place / "searches.png")
        pictures.recall_chart(untrained, made.metrics, place / "recall.png")
        names = ["searches.png", "recall.png"]
        if ctr("auc") in made.metrics:
            pictures.auc_chart(made.metrics, place / "auc.png")
            names.append("auc.png")
        drawn = {name: (place / name).read_bytes() for name in names}
        took = page.table(("request", "median, ms"), [(page.text(name), f"{value:.1f}") for name, value in latency.items()], numbers=(1,))
        shown = "".join(f"<p>{page.picture(content, name)}</p>" for name, content in drawn.items())
        made.report.plus("Asked over HTTP", took + shown, drawn).write(place)
        Registry(settings).attach(RELEASE, made.version, place)
        say.append(", ".join(f"{name} {value:.1f} ms" for name, value in latency.items()))
        say.append(f"wrote {place / page.PAGE}")


def _summary(
    console: Console,
    metrics: dict[str, float],
    champion: dict[str, float] | None,
    champion_version: int | None,
    seconds: float,
) -> None:
    """What was reached, beside the zero point, the champion and the ceiling."""
    table = Table(title=f"Reached in {seconds / 60:.1f} minutes", title_justify="left")
    for name in ("figure", "this release", "beside it"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name in (recall(IMAGE_SEARCH, k) for k in KS):
        _row(table, metrics, name, ("untrained", metrics.get(metric_names.untrained(name))), _beside(champion, champion_version, name))
    name = recall(TEXT_SEARCH)
    _row(table, metrics, name, ("untrained", metrics.get(metric_names.untrained(name))))
    for where in ("", "new_items", "long_tail", "small_sellers"):
        mean, low, high = (metrics.get(ctr("auc", where, GAIN + end)) for end in ("", "_low", "_high"))
        gain = None if mean is None or low is None or high is None else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        beside = [("ID-only", metrics.get(ctr("auc", where, ID_ONLY))), ("gain", gain), ("oracle", metrics.get(ctr("auc", where, ORACLE)))]
        _row(table, metrics, ctr("auc", where), *beside, *([_beside(champion, champion_version, ctr("auc"))] if not where else []))
    for name in ("gauc", "logloss"):
        _row(table, metrics, ctr(name), *((text, metrics.get(ctr(name, "", m))) for text, m in (("ID-only", ID_ONLY), ("oracle", ORACLE))))
    console.print()
    console.print(table)


def _try_next(console: Console, settings: Settings, chosen: Choices) -> None:
    """Commands as they are typed in a checkout, or where a wheel is installed."""
    from moon_ops.registry.registry import CHAMPION, Registry

    console.print("\nTry next:")
    prefix = f"MOON_HOME={settings.home} " if settings.home != Path(".moon").absolute() else ""
    serving = Registry(settings).alias(CHAMPION) is not None
    made = (ROOT / "Makefile").is_file()
    moon, serve, airflow, again = CHECKOUT if made else INSTALLED
    again = " ".join([again, *chosen.again(made)])
    for command, why in (
        *([(serve, f"visual search at http://{settings.host}:{settings.port}/")] if serving else []),
        (airflow, "the same stages as DAGs, in the Airflow UI"),
        (again, "another release, compared with this one"),
        (f"{moon} status", "what is served now"),
        (f"{moon} rollback", "back to the release before (once there are two)"),
    ):
        console.print(f"  {prefix}{command}   [dim]# {why}[/dim]", highlight=False)


def _row(table: Table, metrics: dict[str, float], name: str, *beside: tuple[str, float | str | None]) -> None:
    if name in metrics:
        shown = [f"{label} {value if isinstance(value, str) else f'{value:.4f}'}" for label, value in beside if value is not None]
        table.add_row(name, f"{metrics[name]:.4f}", ", ".join(shown))


def _beside(champion: dict[str, float] | None, version: int | None, name: str) -> tuple[str, float | None]:
    return f"release {version}", champion.get(name) if champion else None
