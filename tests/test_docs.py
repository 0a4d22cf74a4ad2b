"""What the documents say is true: the file map names every file once, links lead somewhere, and the commands exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from moon_ops.cli.main import app
from moon_ops.settings import Settings, variable

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "architecture.md"]  # which is about the code
MAPPED = ("moon_ops/", "dags/", "deploy/", "feature_repo/", "models/", "benchmarks/", ".ci/", "docs/", "Dockerfile", "docker-compose.")


def tracked() -> set[str]:
    """The project's files, as git knows or would know them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_file_map_names_every_file_once() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "architecture.md").read_text().partition("## File map")[2], re.M)
    assert len(named) == len(set(named))
    files = {
        name
        for name in tracked()
        if name.startswith(MAPPED) and not name.endswith("__init__.py") and not name.startswith("benchmarks/results/")
    }
    assert set(named) == files


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_begins_with_its_command(page: Path) -> None:
    """Who opens it sees first what to type."""
    first = page.read_text().partition("```")
    assert first[0].count("\n") <= 4
    assert first[2].startswith("bash\n")


def test_commands_in_the_documents_exist() -> None:
    commands = set(get_command(app).commands)
    blocks = "\n".join(block for document in DOCUMENTS for block in re.findall(r"```bash.*?```", document.read_text(), re.S))
    assert set(re.findall(r"\bmoon ([a-z][a-z-]*)\b", blocks)) <= commands
    assert {"ingest", "train", "embed", "ctr", "promote", "rollback"} <= set(re.findall(r"\bmoon ([a-z][a-z-]*)\b", blocks))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets
    assert {"demo", "test", "lint", "airflow", "serve", "bench", "help"} <= targets


def test_environment_variables_are_documented() -> None:
    """The table names what the settings read, each once, and nothing else."""
    rows = re.findall(r"^\| (`MOON_.*?) \|", REFERENCE, re.M)
    named = [name for row in rows for name in re.findall(r"`(MOON_[A-Z_]+)`", row)]
    assert sorted(named) == sorted(variable(field) for field in Settings.model_fields)


def test_the_defaults_in_the_table_are_those_of_the_settings() -> None:
    defaults = {name: re.sub(r"`", "", default) for name, default in re.findall(r"^\| `(MOON_[A-Z]+)` \|.*\| (.*) \|$", REFERENCE, re.M)}
    for field in ("variant", "behaviors"):
        assert defaults[variable(field)] == str(Settings.model_fields[field].default)
    assert "`127.0.0.1`, `8321`" in REFERENCE
    assert (Settings.model_fields["host"].default, Settings.model_fields["port"].default) == ("127.0.0.1", 8321)


def test_constraints_are_name_and_version_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", d)[0]).lower() for d in wanted}
    assert names - {"moon-ops"} <= pinned, "an extra may name another of our own"


def test_public_functions_have_docstrings_and_modules_say_what_they_are() -> None:
    for path in sorted((ROOT / "moon_ops").rglob("*.py")):
        assert path.read_text().lstrip().startswith('"""'), path


def test_the_project_speaks_of_itself_alone() -> None:
    """No address of a registry, no path of one machine."""
    for name in tracked():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".html", "") and name != "LICENSE":
            text = path.read_text()
            assert not re.search(r"(?<![\w.])/(root|home|work)/\w", text), name
            assert "pypi.org" not in text.replace('"pypi.org" not in', ""), name


def test_the_five_lines_to_a_training_loader_run_as_they_stand(released: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, but for the home."""
    block = (ROOT / "docs" / "ctr.md").read_text().split("```python\n")[1].split("```")[0]
    assert '".moon/feature_store"' in block
    exec(compile(block.replace(".moon/feature_store", f"{released.home}/feature_store"), "docs/ctr.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "'item_ids_embedding': (2, 50, " in shown
    assert shown.endswith("ctr_v1\n")


BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "made_up.py")  # which measures nothing


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda p: p.name)
def test_a_benchmark_names_the_processor_beside_its_figures(file: Path) -> None:
    """All through one function, which does."""
    assert ("**processor().beside(" if file.name == "figures.py" else "figures.main(table") in file.read_text()
