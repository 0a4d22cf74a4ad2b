"""What is told of every stage, whoever calls it: a span, fields of the log, one line with the counts at its end, and metrics of jobs."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ParamSpec, TypeVar

from moon_ops.telemetry import jobs, logs, traces
from moon_ops.telemetry.traces import Fact

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
GIVEN = ("encoder", "ctr", "version", "name", "seed", "recipe")  # arguments that are told
RENAMED = {"version": "release", "name": "recipe", "run_id": "mlflow_run"}
TEXTS = ("contract_id", "run_id")  # of a result: any other text may be of the shop's own data, or a place on one machine
OF_AIRFLOW = {"AIRFLOW_CTX_DAG_ID": "dag_id", "AIRFLOW_CTX_DAG_RUN_ID": "run_id", "AIRFLOW_CTX_TASK_ID": "task_id"}


def stage(name: str, *parts: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Tell of a function as the stage ``name``. Of a result that is a tuple, ``parts`` names what each of its members is about; an empty
    text leaves one out."""

    def told(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = {**_airflow(), **_given(signature.bind_partial(*args, **kwargs).arguments)}
            began = time.perf_counter()
            with traces.span(name, after="", **given) as facts, logs.fields(stage=name, trace_id=traces.trace_id(), **given):
                result = function(*args, **kwargs)
                found = facts_of(result, parts)
                facts |= found
                jobs.count(name, found)
                with logs.fields(**found, seconds=round(time.perf_counter() - began, 3)):
                    log.info("%s has ended", name)
                return result

        return run

    return told


def _given(arguments: Mapping[str, Any]) -> dict[str, Fact]:
    return {RENAMED.get(name, name): arguments[name] for name in GIVEN if isinstance(arguments.get(name), (int, str))}


def _airflow() -> dict[str, Fact]:
    """Which task this process works for, as Airflow writes it into its environment."""
    return {name: os.environ[variable] for variable, name in OF_AIRFLOW.items() if variable in os.environ}


def facts_of(result: object, parts: tuple[str, ...] = ()) -> dict[str, Fact]:
    """The numbers of a report, and what of its texts may be told; dictionaries of counts as their sums."""
    if isinstance(result, tuple):
        return {k: v for part, one in zip(parts, result, strict=True) if part for k, v in _named(part, one).items()}
    found: dict[str, Fact] = {}
    for field in fields(result) if is_dataclass(result) else ():
        value = getattr(result, field.name)
        if isinstance(value, dict) and all(type(count) is int for count in value.values()):
            value = sum(value.values())
        if isinstance(value, (int, float)) or (isinstance(value, str) and field.name in TEXTS):
            found[RENAMED.get(field.name, field.name)] = value
    return found


def _named(part: str, result: object) -> dict[str, Fact]:
    if isinstance(result, (int, float)):
        return {part: result}
    return {f"{part}.{name}": value for name, value in facts_of(result).items()}
