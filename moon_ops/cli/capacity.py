"""``moon plan``: what a shop of a size would take, on paper."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from moon_ops.cli.terminal import settings_of

if TYPE_CHECKING:
    from moon_ops.recipes.costs import Costs
    from moon_ops.release.capacity import Estimate, Means, Prices, Shop

app = typer.Typer(no_args_is_help=True)
LINE = "{:<17} {:>10} {:>10} {:>11} {:>9} {:>11}  {}"


@app.command()
def plan(
    items: Annotated[float, typer.Option(help="Items of the shop, e.g. 1e8.")],
    events: Annotated[float, typer.Option(help="Events of its log, e.g. 1e11; its clicks, purchases and impressions together.")],
    shop: Annotated[str, typer.Option(help="More of the shop, e.g. days=90,pictures=3,picture_kb=80,purchases=0.001.")] = "",
    means: Annotated[
        str, typer.Option(help="Encoder and machines, e.g. dim=256,parameters=2e9,tokens=400,gpu_tflops=989,utilisation=0.4,index_gb=8.")
    ] = "",
    prices: Annotated[str, typer.Option(help="For the cost of a day, e.g. gpu_hour=2.5,core_hour=0.04,gb_month=0.02.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Tell what a shop of a size would take: hours, memory, disk, the index and the cost of a day. Nothing is run.

    Example: moon plan --items 1e8 --events 1e11
    """
    from moon_ops.recipes.costs import Costs
    from moon_ops.recipes.reading import recipe
    from moon_ops.release.capacity import Means, Prices, Shop, estimates, given

    settings = settings_of(None, looking=True)
    costs = recipe(Costs, "costs", settings.models)
    sized = given(Shop(items, events), "shop", shop)
    has = given(Means(index_gb=settings.index_gb), "means", means)
    paid = given(Prices(), "prices", prices)
    found = estimates(sized, has, costs)
    if as_json:
        parts = [{**asdict(one), "cost_a_day": one.daily(paid)} for one in found]
        typer.echo(json.dumps({"shop": asdict(sized), "means": asdict(has), "processor": costs.processor, "parts": parts}))
    else:
        _show(found, paid, costs)
        typer.echo(f"taken to be so (--shop, --means): {_said(sized)}, {_said(has)}")


def _show(found: list[Estimate], prices: Prices, costs: Costs) -> None:
    typer.echo(LINE.format("", "core-hours", "GPU-hours", "memory GiB", "disk GiB", "runs a day", "").rstrip())
    for one in found:
        amounts = [_amount(value) for value in (one.core_hours, one.gpu_hours, one.memory, one.disk, one.a_day)]
        typer.echo(LINE.format(one.part, *amounts, f"{one.rests_on}: {one.note}" if one.note else one.rests_on))
    typer.echo(f"disk {sum(one.disk for one in found):,.0f} GiB; the largest process {max(one.memory for one in found):,.1f} GiB")
    if any(vars(prices).values()):
        typer.echo(f"a day costs {sum(one.daily(prices) for one in found):,.2f}, disk included")
    else:
        typer.echo("what a day costs: give --prices, e.g. gpu_hour=2.5,core_hour=0.04,gb_month=0.02")
    typer.echo(f"measured: a line through what one core of {costs.processor} took at the sizes that models/costs.toml names")


def _said(given: Shop | Means) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in vars(given).items() if name not in ("items", "events"))


def _amount(value: float) -> str:
    return "" if not value else f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.2g}"
