"""Help: every command and every study is there, and shows an example."""

from __future__ import annotations

import re

from typer.main import get_command
from typer.testing import CliRunner

from moon_ops import __version__
from moon_ops.cli import studies
from moon_ops.cli.main import app
from moon_ops.cli.order import ORDER
from moon_ops.shops.simulate import SIZES

PUBLIC = [
    "demo",
    "describe",
    "plan",
    "diff",
    "import",
    "ingest",
    "check",
    "quarantine",
    "simulate",
    "train",
    "export",
    "embed",
    "publish",
    "features",
    "ctr",
    "evaluate",
    "release",
    "promote",
    "rollback",
    "serve",
    "status",
    "doctor",
    "maintain",
    "erase",
    "restore",
    "explain",
    "verify",
    "moves",
    "bring",
    "exchange-rate",
]


def test_every_public_command_is_there_and_has_an_example() -> None:
    runner = CliRunner()
    assert set(get_command(app).commands) == {*PUBLIC, "study", "keys"}
    for command in PUBLIC:
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert re.search(rf"Example:\s+moon {command}\b", shown.output), f"{command} has no example"


def test_commands_stand_in_the_order_in_which_a_shop_needs_them() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2]
    assert re.findall(r"^  ([a-z-]+) ", shown, re.M) == list(ORDER)
    assert set(ORDER) == set(get_command(app).commands)


def test_the_sizes_of_the_simulated_shop_are_those_that_there_are() -> None:
    for command in ("demo", "simulate"):
        shown = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
        assert f"{', '.join([*SIZES][:-1])} or {[*SIZES][-1]}." in shown


def test_every_study_is_there_and_has_an_example() -> None:
    names = [c.name or c.callback.__name__ for c in studies.app.registered_commands]
    encoders, models = ["ablation", "scaling", "circle_loss", "learning_rates"], ["click_models", "cube_parts", "daily", "behaviour_length"]
    assert names == [*encoders, *models, "cross_fitted"]
    for command in ("click-models", "cube-parts", "daily", "behaviour-length", "cross-fitted"):
        shown = CliRunner().invoke(app, ["study", command, "--help"])
        assert re.search(rf"Example:\s+moon study {command} --encoder 1\b", shown.output), f"{command} has no example"
    shown = CliRunner().invoke(app, ["study", "learning-rates", "--help"])
    assert re.search(r"Example:\s+moon study learning-rates --recipes moon-study,moon-tiny\b", shown.output)
    for command in ("ablation", "scaling", "circle-loss"):
        shown = CliRunner().invoke(app, ["study", command, "--help"])
        assert shown.exit_code == 0
        assert re.search(rf"Example:\s+moon study {command} --recipe moon-study --seeds 0,1,2\b", shown.output), f"{command} has no example"


def test_the_version_and_the_short_name_of_help() -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"moon_ops {__version__}\n")
    assert "Example: moon ctr" in runner.invoke(app, ["ctr", "-h"]).output


def test_an_example_of_set_is_of_the_recipe_that_the_command_reads() -> None:
    for command, example in (("train", "e.g. training.batch=256"), ("ctr", "e.g. batch=256"), ("exchange-rate", "e.g. batch=256")):
        assert example in " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
