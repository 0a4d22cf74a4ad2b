"""What MLflow calls when an alias has moved."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from moon_ops.serving import hooks
from moon_ops.serving.problems import problem
from moon_ops.serving.service import Service


def add(app: FastAPI, service: Service) -> None:
    """``/v1/hooks/mlflow``, where there is a secret to check what it is told."""
    secret = service.settings.webhook_secret.get_secret_value()
    if not secret:
        return

    @app.post(hooks.PATH, status_code=202)
    async def moved(request: Request) -> Response:
        """MLflow's word that an alias has moved, signed with MOON_WEBHOOK_SECRET: the registry is asked at once."""
        if not hooks.is_signed(secret, request.headers, await request.body(), time.time()):
            action = "sign it with MOON_WEBHOOK_SECRET, as MLflow does, and compare the clocks"
            return problem(401, "the signature is wrong, or older than five minutes", action)
        service.follower.wake()
        return JSONResponse({"status": "the registry is asked"}, status_code=202)
