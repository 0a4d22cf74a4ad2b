"""The wheel: what it carries, and that it works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel in it; what it needs is lent by this one, but not its moon_ops."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, symlinks=True)
    subprocess.run(
        [*PIP, "--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        check=True,
    )
    own = next(place.glob("lib/python*/site-packages"))
    lent = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "lent.pth").write_text("".join(f"{path}\n" for path in lent))  # the links in there, e.g. to a checkout, are not followed
    return place / "bin"


def ran(installed: Path, *words: str, **variables: str) -> str:
    """What a command prints that ends well, started from a directory of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MOON_HOME")} | variables
    elsewhere = installed.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run([installed / words[0], *words[1:]], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_is_in_the_wheel_and_nothing_beside_the_package(wheel: Path) -> None:
    source = wheel.parent / "source"
    shipped = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    kept = {name for name in shipped if name.startswith(("moon_ops/", "models/", "dags/", "feature_repo/"))}
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    assert names == {name if name.startswith("moon_ops/") else f"moon_ops/assets/{name}" for name in kept}
    assert {"moon_ops/assets/models/gates.toml", "moon_ops/serving/web/index.html"} <= names


WHERE = """
import moon_ops, pathlib
from moon_ops.embeddings.features import REPO
from moon_ops.serving.routes.page import WEB
from moon_ops.settings import ROOT, Settings
places = (pathlib.Path(moon_ops.__file__), Settings().models / "gates.toml", REPO / "features.py", ROOT / "dags" / "moon_retrain.py")
places += tuple(WEB / name for name in ("index.html", "page.css", "page.js", "crop.js"))
print(*places, sep="\\n")
"""


@pytest.mark.slow
def test_what_it_carries_is_found(installed: Path) -> None:
    found = [Path(line) for line in ran(installed, "python", "-c", WHERE).splitlines()]
    assert all(path.is_file() and path.is_relative_to(installed.parent) for path in found), found


@pytest.mark.slow
def test_the_installed_commands_run_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    """From an empty home to a release that answers."""
    home = {"MOON_HOME": str(tmp_path / "home")}
    assert str(installed.parent) in ran(installed, "moon", "doctor", **home)
    said = ran(installed, "moon", "demo", "--size", "tiny", "--encoder", "moon-nano", **home)
    assert "moon serve" in said
    assert "make " not in said, "there is no Makefile"
    assert (tmp_path / "home" / "report" / "report.html").is_file()
