"""The web application: one page, and predictions of images that are sent to it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import tensorflow as tf

from keras_deeplab.demo.choice import SIDES, Choice, Settings
from keras_deeplab.demo.predicting import prediction
from keras_deeplab.extras import require
from keras_deeplab.validation import error

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

PAGE = Path(__file__).with_name("page.html")
MAX_BYTES = 32 * 2**20  # of an image file
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(choices: Sequence[Choice], hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """Returns an ASGI application that predicts images with a choice of models.

    `GET /` is the page, `GET /models` what it needs to know of the models, and `POST /predict`
    predicts the image file that is the body. Faults are JSON, `{"error": message}`. Nothing is
    written to disk, and no path is read from a request. One prediction is computed at a time.

    Args:
        choices: The models.
        hosts: Names of this machine that a request may be addressed to, `["*"]` for all: a website
            whose name is resolved to this machine (DNS rebinding) has another.

    Raises:
        ImportError: If Starlette is not installed.
    """
    require("the demo", "demo", "starlette", "uvicorn")
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    template = PAGE.read_text(encoding="utf-8")
    one_at_a_time = CapacityLimiter(1)
    described = {
        "models": [choice.to_dict() for choice in choices],
        "sides": SIDES,
        "max_bytes": MAX_BYTES,
    }

    async def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": POLICY.format(nonce)}
        return HTMLResponse(template.replace("NONCE", nonce), headers=HEADERS | policy)

    async def models(_: Request) -> Response:
        return JSONResponse(described, headers=HEADERS)

    async def predicted(request: Request) -> Response:
        if not _is_own(request):
            raise HTTPException(403, "Only the page itself may send images.")
        query = dict(request.query_params)
        number = query.pop("model", "0")
        if not number.isdecimal() or int(number) >= len(choices):
            raise error("model", f"a number from 0 to {len(choices) - 1}", number)
        settings = Settings.from_query(query)
        encoded = bytearray()
        async for part in request.stream():
            encoded += part
            if len(encoded) > MAX_BYTES:
                megabytes = f"{MAX_BYTES / 2**20:.0f} MB"
                raise HTTPException(413, f"An image file must be of at most {megabytes}.")

        def compute() -> bytes:
            return json.dumps(prediction(bytes(encoded), choices[int(number)], settings)).encode()

        content = await to_thread.run_sync(compute, limiter=one_at_a_time)
        return Response(content, media_type="application/json", headers=HEADERS)

    async def refused(_: Request, fault: Exception) -> Response:
        status, text = 400, str(fault)
        if isinstance(fault, HTTPException):
            status, text = fault.status_code, fault.detail
        elif isinstance(fault, MemoryError | tf.errors.ResourceExhaustedError):
            status, text = 507, f"The memory does not suffice: {fault}"
        elif not isinstance(fault, ValueError | OSError):  # the server logs its traceback
            status, text = 500, f"The prediction failed ({type(fault).__name__}); see the terminal."
        return JSONResponse({"error": text}, status, HEADERS)

    expected = (HTTPException, ValueError, OSError, MemoryError, tf.errors.ResourceExhaustedError)
    expected += (ClientDisconnect,)  # no one reads the answer, and no traceback is logged
    return Starlette(
        routes=[
            Route("/", page),
            Route("/models", models),
            Route("/predict", predicted, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        ],
        exception_handlers=dict.fromkeys((*expected, Exception), refused),
    )


def _is_own(request: Request) -> bool:
    """Whether a request comes from the page, or from a program that is not a browser."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return same and site == "same-origin"
