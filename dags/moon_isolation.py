"""Where the heavy tasks of the DAGs do their work: one setting, ``MOON_TASKS``, read when Airflow reads a DAG.

``here`` (or nothing): in the task's own process, on Airflow's worker. ``python:/path/to/python``: in another interpreter of that
worker. ``docker:IMAGE``: in a container beside it. ``pod:IMAGE``: in a pod.
Options follow, e.g. ``pod:IMAGE?memory=32Gi&cpu=8``.

A heavy task is a plain function of a DAG file. Its text is sent to where it runs, so it names nothing of its file, takes and returns what
JSON can hold, and has no annotation that is not a builtin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from airflow.sdk import task

HERE, PYTHON, DOCKER, POD = "here", "python", "docker", "pod"
OPTIONS = {  # and what each is if nobody says otherwise; a test holds cpu and memory to the worker of docker-compose.yml
    HERE: {},
    PYTHON: {},
    DOCKER: {"cpu": "4", "memory": "8g", "network": "bridge", "volume": ""},
    POD: {"cpu": "4", "memory": "8Gi", "namespace": "", "secret": "moon", "template": ""},
}
TOLD = ("MOON_", "AWS_", "OTEL_")
OF_THE_WORKER = ("MOON_HOME", "MOON_INBOX", "MOON_MODELS", "MOON_TASKS")  # places on its disk, which a container has not


def chosen() -> tuple[str, str, dict[str, str]]:
    """How, what (an interpreter, an image) and the options of ``MOON_TASKS``; :class:`ValueError`, which Airflow shows, if it is none."""
    text = os.environ.get("MOON_TASKS") or HERE
    address, _, said = text.partition("?")
    kind, _, what = address.partition(":")
    given = dict(parse_qsl(said, keep_blank_values=True))
    usual = OPTIONS.get(kind)
    if usual is None or (kind == HERE) == bool(what) or not given.keys() <= usual.keys():
        options = "; ".join(f"{name}: {', '.join(of)}" for name, of in OPTIONS.items() if of)
        raise ValueError(
            f"MOON_TASKS = {text!r} says not where tasks run → set it to here, python:/path/to/python, docker:IMAGE or pod:IMAGE "
            f"(options: {options})"
        )
    return kind, what, {**usual, **given}


def heavy(function: Callable[..., Any], *, reads_disk: bool = False, **options: Any) -> Any:
    """``function`` as a task that runs where ``MOON_TASKS`` says, with Airflow's own ``options`` of a task.

    What ``reads_disk`` needs a directory of the worker, and is sent into no container.
    """
    kind, what, said = chosen()
    if kind == PYTHON:
        return task.external_python(python=what, expect_airflow=False, **options)(function)
    if kind == DOCKER and not reads_disk:
        return task.docker(image=what, **_container(said), **options)(function)
    if kind == POD and not reads_disk:
        return task.kubernetes(image=what, **_pod(said), **options)(function)
    return task(**options)(function)


def _container(said: dict[str, str]) -> dict[str, Any]:
    """Of apache-airflow-providers-docker."""
    found = {"cpus": float(said["cpu"]), "mem_limit": said["memory"], "network_mode": said["network"], "pre_execute": hand_over}
    if said["volume"]:  # keeps the checkpoint of a training that was killed, for its next attempt
        from docker.types import Mount

        found["mounts"] = [Mount(source=said["volume"], target="/var/lib/moon", type="volume")]
    return {**found, "mount_tmp_dir": False, "auto_remove": "force", "expect_airflow": False}


def hand_over(context: Any) -> None:
    """What the worker's variables say, to the container that is about to start. Given to the task earlier, Airflow would store secrets."""
    told = {name: value for name, value in os.environ.items() if name.startswith(TOLD) and name not in OF_THE_WORKER}
    context["task"]._private_environment = told


def _pod(said: dict[str, str]) -> dict[str, Any]:
    """Of apache-airflow-providers-cncf-kubernetes. Its variables come from a secret of the cluster, and from nothing that Airflow knows."""
    from kubernetes.client import models as k8s

    given = {"cpu": said["cpu"], "memory": said["memory"]}
    dropped = k8s.V1Capabilities(drop=["ALL"])
    safe = k8s.V1SecurityContext(run_as_user=10001, run_as_non_root=True, allow_privilege_escalation=False, capabilities=dropped)
    found = {name: said[option] for name, option in (("namespace", "namespace"), ("pod_template_file", "template")) if said[option]}
    return {
        **found,
        "env_from": [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=said["secret"]))],
        "container_resources": k8s.V1ResourceRequirements(requests=given, limits=given),  # it is put where there is as much
        "container_security_context": safe,
        "startup_timeout_seconds": 900,  # an image of some gigabytes may have to be pulled first
        "get_logs": True,
    }
