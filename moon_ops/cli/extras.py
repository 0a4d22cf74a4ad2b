"""What a plain install does not bring: which extra a job needs, and the one line that says so when it is not there."""

from __future__ import annotations

from moon_ops.errors import InstallError

TRAIN = ("accelerate", "huggingface_hub", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy", "sklearn", "torch", "transformers")
SERVE = ("faiss", "fastapi", "httptools", "onnxruntime", "opentelemetry", "prometheus_client", "starlette", "tokenizers", "uvicorn")
SDK = ("alembic", "feast", "mlflow", "redis", "sqlalchemy", "yaml")
BROUGHT_BY = {  # module → the smallest extra that brings it
    **dict.fromkeys(TRAIN, "train"),
    **dict.fromkeys(SERVE, "serve"),
    **dict.fromkeys(SDK, "sdk"),
    "airflow": "airflow",
    "psycopg": "postgres",
    "ray": "ray",
    "pillow_heif": "heic",
}
RELEASES = ("promote", "rollback", "moves", "explain", "diff", "verify", "status")
SERVING = ("embed", "publish", "evaluate", *RELEASES, "serve", "maintain", "erase", "bring")
NEEDED_BY = {  # command → the extra with all that it needs, so that nobody is told of one package after the other
    **dict.fromkeys(("train", "export", "ctr", "release", "study", "exchange-rate"), "train"),
    **dict.fromkeys(SERVING, "serve"),
    "demo": "all",
}


def not_installed(missing: ImportError, command: str) -> InstallError | None:
    """What to install for ``command`` (e.g. ``moon train``); None if what is missing is no package of an extra, but a fault."""
    package = (missing.name or "").partition(".")[0]
    if not isinstance(missing, ModuleNotFoundError) or package not in BROUGHT_BY:
        return None
    extra = NEEDED_BY.get(command.rpartition(" ")[2], BROUGHT_BY[package])
    return InstallError(f"{command} needs {package}, which is not installed", action=f'pip install "moon_ops[{extra}]"')
