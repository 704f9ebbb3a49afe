"""The HTTP API and its page.

Nothing of an image is stored or logged. Every error of a route is `{"error": {"code", "message"}}` with a code of
`detector.serve.problems`; bytes that are no HTTP request, and connections beyond the limit, are answered by Uvicorn in
plain text.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from detector.inference.detector import ScoredFace
from detector.serve import limits
from detector.serve.problems import OF_AN_IMAGE, Problem, code_of_status
from detector.serve.schemas import UPLOADING, Explanation, Health, ModelAnswer, Predictions, form, responses
from detector.serve.service import Service
from detector.serve.uploads import Budget, Upload

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_log = logging.getLogger(__name__)


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """The application around a service, which it closes at its end.

    Args:
        token: what `Authorization: Bearer` must hold for /v1 and /metrics; None lets everybody in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Real or fake",
        version="1",
        description=(
            "Says of every face in an image how likely it is a fake. Results hold nothing of the image, and nothing of "
            "it is stored."
        ),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    guard = Depends(_guard(token))
    app.include_router(_scoring(service), dependencies=[guard], tags=["detector"])
    app.include_router(_operation(service, guard), tags=["operation"])
    _add_page(app)
    for kind in (Problem, ExceptionGroup, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(Gate, service=service)
    return app


def _guard(token: str | None) -> Callable:
    """The dependency that lets a request through if it brings the token."""
    documented = Depends(HTTPBearer(auto_error=False) if token else lambda: None)

    def allowed(request: Request, _=documented) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip(" \t").encode("latin-1", "replace"), (token or "").encode())
        if token and not (right and scheme.lower() == "bearer"):
            raise Problem("token_required")

    return allowed


# ---- routes --------------------------------------------------------------------------------------------------------


def _scoring(service: Service) -> APIRouter:
    """/v1: predict, explain, model."""
    routes = APIRouter()
    budget = Budget(limits.REQUESTS, limits.HELD_BYTES)
    Detect = Annotated[bool, Query(description="look for faces; false judges each image as one face, as it is")]
    Number = Annotated[int, Query(ge=0, lt=limits.FACES, description="number of the face in the prediction")]

    @routes.post(
        "/v1/predict",
        responses=responses(*UPLOADING, model=Predictions, description="every image, or its own error"),
        openapi_extra=form(one=False),
        summary="Judge the faces of one or more images",
    )
    async def predict(request: Request, detect: Detect = True) -> Response:
        async with _uploaded(request, budget) as files, asyncio.TaskGroup() as group:
            tasks = [group.create_task(_prediction(service, i, file, detect)) for i, file in enumerate(files)]
        return JSONResponse({"images": [task.result() for task in tasks]})

    @routes.post(
        "/v1/explain",
        responses=responses(*UPLOADING, "one_file_only", "no_such_face", *OF_AN_IMAGE,
                            model=Explanation, description="the judgement and its heatmap"),
        openapi_extra=form(one=True),
        summary="Show what in a face speaks for fake (Grad-CAM)",
    )  # fmt: skip
    async def explain(request: Request, face: Number = 0, detect: Detect = True) -> Response:
        async with _uploaded(request, budget) as files:
            if len(files) != 1:
                raise Problem("one_file_only")
            scored, png = await service.explain(files[0], face, detect)
        return JSONResponse({"face": _face(scored), "heatmap": png and base64.b64encode(png).decode()})

    @routes.get(
        "/v1/model",
        responses=responses("bad_request", "token_required", "internal_error", model=ModelAnswer),
        summary="What the model is and how its scores are to be read",
    )
    def model() -> Response:
        card, calibration = service.detector.card, service.detector.calibration
        figures = {key: value for key, value in service.chosen_on.items() if isinstance(value, int | float | str)}
        return JSONResponse(
            {
                "classes": card.classes, "backbone": card.backbone, "image_size": card.image_size,
                "model": service.digest, "data": card.data_digest, "trained_on": card.trained_on,
                "caveat": card.caveat, "threshold": calibration.threshold,
                "unsure": list(calibration.unsure), "chosen_on": figures,
            }
        )  # fmt: skip

    return routes


@asynccontextmanager
async def _uploaded(request: Request, budget: Budget) -> AsyncIterator[list[bytes]]:
    """The uploaded files, if there is room for their request; the time for the answer runs from then."""
    with Upload(budget) as upload:
        headers = request.headers
        files = await upload.read(headers.get("content-type", ""), headers.get("content-length"), request.stream())
        try:
            async with asyncio.timeout(limits.ANSWER_SECONDS):
                yield files
        except TimeoutError:
            raise Problem("time_limit") from None


async def _prediction(service: Service, index: int, file: bytes, detect: bool) -> dict:
    """One image of the answer: its faces, or its own error."""
    try:
        photo, faces = await service.predict(file, detect)
    except Problem as problem:
        if problem.code not in OF_AN_IMAGE:
            raise
        return {"index": index, "status": "error", "faces": [], "error": problem.body()}
    status = "faces" if faces else "no_face"
    return {"index": index, "status": status, "width": photo.width, "height": photo.height,
            "faces": [_face(face) for face in faces]}  # fmt: skip


def _face(face: ScoredFace) -> dict:
    return {"box": list(face.crop.box), "p_fake": face.p_fake, "label": face.label, "verdict": face.verdict}


def _operation(service: Service, guard) -> APIRouter:
    """/healthz, /readyz and /metrics."""
    routes = APIRouter()

    @routes.get("/healthz", responses=responses("bad_request", model=Health), summary="Whether the process is alive")
    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    @routes.get(
        "/readyz",
        responses=responses("bad_request", "draining", model=Health),
        summary="Whether it takes work: the model is loaded and the service is not being stopped",
    )
    async def readyz() -> Response:
        if not service.ready:
            raise Problem("draining")
        return JSONResponse({"status": "ready"})

    @routes.get(
        "/metrics",
        dependencies=[guard],
        response_class=PlainTextResponse,
        responses=responses("bad_request", "token_required", description="Prometheus's text format"),
        summary="Counters for Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def _add_page(app: FastAPI) -> None:
    """The page at /, with a policy that lets a browser run the page's own script and style and nothing else."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy})


# ---- errors --------------------------------------------------------------------------------------------------------


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, ExceptionGroup):  # of the images of one request
        error = error.exceptions[0]
    match error:
        case Problem():
            return _answer(error)
        case RequestValidationError():
            first = error.errors()[0]
            return _answer(Problem("invalid_parameter", f"{str(first['loc'][-1])[:40]}: {first['msg']}"))
        case HTTPException():
            return _answer(Problem(code_of_status(error.status_code)), error.headers)
    _log.error("%s failed", request.url.path, exc_info=error)
    return _answer(Problem("internal_error"))


def _answer(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = dict(headers or {})
    if problem.status == 503:
        headers["retry-after"] = str(limits.RETRY_SECONDS)
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": problem.body()}, problem.status, headers)


class Gate:
    """ASGI middleware around everything: headers, counters, one line in the log, and an answer whatever happens."""

    def __init__(self, app, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, start = 0, time.perf_counter()
        metrics = self._service.metrics

        async def send_on(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        with metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send_on)
            except ClientDisconnect:
                status = status or 499  # as nginx writes for a client that left
            except Exception:
                _log.exception("%s failed", scope["method"] if scope["method"].isalpha() else "request")
                if not status:
                    await _answer(Problem("internal_error"))(scope, receive, send_on)
        seconds = time.perf_counter() - start
        route = getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(route, status).inc()
        metrics.seconds.labels(route).observe(seconds)
        _log.info("%s %s %.0f ms", route, status, seconds * 1000)
