"""The web application: transformers' own routes, with OpenAI's errors and an API key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from transformers.cli.serving.server import build_server

from launch.serving.models import OneThread, Served
from launch.serving.requests import ApiError, ChatCompletions, Completions

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health")
"""Those of transformers' server that are offered; others load models, or need other ones."""


def build_app(served: Served, api_key: str | None) -> FastAPI:
    """The application.

    Args:
        served: the models.
        api_key: what clients must send as a bearer token, except to ``/health``; None: nothing.
    """
    state = OneThread()
    unused: Any = None  # handlers of routes that are removed
    app: FastAPI = build_server(
        served,
        ChatCompletions(served, state),
        Completions(served, state),
        response_handler=unused,
        transcription_handler=unused,
        systemone_handler=unused,
        generation_state=state,
    )
    app.router.routes = [r for r in app.router.routes if getattr(r, "path", None) in ROUTES]
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http_error)
    if api_key is not None:
        app.middleware("http")(_checker(api_key))
    return app


def _checker(api_key: str) -> Callable[..., Awaitable[Response]]:
    expected = f"Bearer {api_key}".encode()

    async def check(request: Request, then: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        if request.url.path != "/health" and not hmac.compare_digest(given, expected):
            return _response(
                ApiError("Incorrect API key provided", status=401, code="invalid_api_key")
            )
        return await then(request)

    return check


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status)


async def _api_error(request: Request, error: Any) -> JSONResponse:
    return _response(error)


async def _malformed(request: Request, error: Any) -> JSONResponse:
    return _response(ApiError("The body must be a JSON object"))


async def _http_error(request: Request, error: Any) -> JSONResponse:
    """What transformers' handlers refuse, such as a field that OpenAI's API does not have."""
    status = 400 if error.status_code == 422 else error.status_code
    return _response(ApiError(str(error.detail), status=status))
