"""The cluster policy in docs/operate.md, word for word: Airflow loads it, and a task that fails says so in one line, ours and its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import datetime as dt
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(dag_folder="dags").dags["moon_promote"]
print(dag.test(run_after=dt.datetime(2026, 6, 1, tzinfo=dt.UTC), logical_date=None, run_conf={"release": 7}).state)
"""


@pytest.mark.slow
def test_a_task_that_fails_is_told_in_one_line(airflow_db: None, fresh_mlflow: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "operate.md").read_text(), re.S)
    (policy,) = [block for block in blocks if "def task_policy" in block]
    (tmp_path / "airflow_local_settings.py").write_text(policy)
    (tmp_path / "home").mkdir()
    shutil.copy(fresh_mlflow, tmp_path / "home")
    environment = {**os.environ, "MOON_HOME": str(tmp_path / "home"), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["failed"], done.stdout + done.stderr
    said, why = (done.stdout + done.stderr).splitlines(), "moon-release has no version 7 (there are: none) → name one of these"
    ours = [line for line in said if "moon_promote failed in task check, run manual__" in line]
    assert len(ours) == 1, done.stdout + done.stderr
    assert f"{why} (runbook: docs/on-call.md of moon_ops)" in ours[0]
    theirs = [line for line in said if f"moon_promote/check: {why}" in line]
    assert len(theirs) == 1, done.stdout + done.stderr
