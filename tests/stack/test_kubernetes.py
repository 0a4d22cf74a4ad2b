"""deploy/kubernetes, read: no cluster. What the manifests say has to agree with the images and with docker-compose.yml."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from moon_ops import __version__
from moon_ops.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "deploy" / "kubernetes"
MANIFESTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all((HERE / "serving.yaml").read_text())}
VALUES: dict[str, Any] = yaml.safe_load((HERE / "airflow-values.yaml").read_text())
USER = 10001  # of the images


def test_the_service_is_probed_limited_and_of_this_version() -> None:
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"].endswith(f"/moon-serve:{__version__}")
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (USER, True)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {"/var/lib/moon", "/tmp"} == {mount["mountPath"] for mount in container["volumeMounts"]}, "all that the image may write to"


def test_the_parts_find_each_other() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    scaled = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    assert scaled["minReplicas"] == MANIFESTS["Deployment"]["spec"]["replicas"] < scaled["maxReplicas"]


def test_a_service_with_a_shard_is_the_service_with_another_part_and_waits_for_nobody() -> None:
    known = {one["kind"]: one for one in yaml.safe_load_all((HERE / "shards.yaml").read_text())}
    assert set(known) == {"Deployment", "Service", "PodDisruptionBudget"}
    pods = [copy.deepcopy(parts["Deployment"]["spec"]["template"]["spec"]) for parts in (known, MANIFESTS)]
    own, serving = ({one["name"]: one["value"] for one in pod["containers"][0].pop("env")} for pod in pods)
    for pod in pods:
        del pod["topologySpreadConstraints"]
    assert pods[0] == pods[1]
    added = {"MOON_INDEX_SHARD": "1", "MOON_QUEUE": "200", "MOON_ITEMS_TOKEN": ""}
    assert own == {**serving, **added}
    name = known["Service"]["metadata"]["name"]
    assert f"MOON_INDEX_PEERS={added['MOON_INDEX_SHARD']}=http://{name}:8321" in (HERE / "shards.yaml").read_text()
    labels = known["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == known["Service"]["spec"]["selector"] == known["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    asking = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["maxReplicas"]
    assert int(own["MOON_QUEUE"]) == asking * Settings.model_fields["queue"].default, "a place for each search of all that ask"


def test_airflow_is_that_of_the_image() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert VALUES["airflowVersion"] == pinned["apache-airflow"]
    assert VALUES["defaultAirflowRepository"].endswith("/moon-train")
    assert VALUES["defaultAirflowTag"] == __version__
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-airflow"]
    assert VALUES["config"]["core"]["auth_manager"] == compose["AIRFLOW__CORE__AUTH_MANAGER"]
    assert VALUES["airflowHome"] == compose["AIRFLOW_HOME"]
    assert f"AIRFLOW__CORE__DAGS_FOLDER={VALUES['config']['core']['dags_folder']}" in (ROOT / "Dockerfile").read_text()
    assert VALUES["uid"] == VALUES["securityContexts"]["pod"]["runAsUser"] == USER
    assert not VALUES["postgresql"]["enabled"]
    assert not VALUES["createUserJob"]["enabled"], "whose password is known"
    assert VALUES["executor"] == "KubernetesExecutor"
    assert "cncf-kubernetes" in " ".join(pinned), "without which that executor does not start"
    assert set(VALUES["workers"]["resources"]) == {"requests", "limits"}


def test_the_second_file_of_values_scales_workers() -> None:
    values = yaml.safe_load((HERE / "airflow-values-celery.yaml").read_text())
    assert values["executor"] == "CeleryExecutor"
    assert values["workers"]["celery"]["keda"]["enabled"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any("providers-celery" in wanted for wanted in extras["stack"])


def test_no_secret_is_written_down() -> None:
    text = "".join(path.read_text() for path in HERE.glob("*.yaml"))
    assert not {"Secret", "ConfigMap"} & set(MANIFESTS)
    assert not re.search(r"password: *\S|pass: *\S", text, re.I)
