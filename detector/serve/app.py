"""The HTTP API and its page.

Nothing of an image is stored or logged. Every error is `{"error": {"code", "message"}}` with a code of
`detector.serve.problems`.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from detector.serve import limits
from detector.serve.problems import CODES, OF_AN_IMAGE, Problem, code_of_status
from detector.serve.service import GradCam, Judgement, Service
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

# ---------------------------------------------------------------------------------- what goes over the wire

Box = Annotated[
    list[int],
    Field(
        min_length=4,
        max_length=4,
        description="left, top, right, bottom in pixels of the upright image",
        examples=[[40, 32, 168, 160]],
    ),
]


class ErrorDetail(BaseModel):
    code: str = Field(description="stable, for programs", examples=["broken_image"])
    message: str = Field(description="for people", examples=[CODES["broken_image"][1]])


class Error(BaseModel):
    error: ErrorDetail


class FaceAnswer(BaseModel):
    box: Box
    p_fake: float = Field(ge=0, le=1, description="calibrated probability that the face is fake", examples=[0.93])
    label: str = Field(description="the class it is called at the threshold", examples=["fake"])
    verdict: str = Field(description='the same, or "unsure" within the unsure band', examples=["fake"])


class ImageAnswer(BaseModel):
    index: int = Field(ge=0, description="number of the file in the request, from 0", examples=[0])
    status: Literal["faces", "no_face", "error"]
    width: int | None = Field(default=None, description="of the upright image, pixels", examples=[200])
    height: int | None = Field(default=None, examples=[200])
    faces: list[FaceAnswer] = Field(description=f"largest first, at most {limits.FACES}")
    error: ErrorDetail | None = None


class Predictions(BaseModel):
    images: list[ImageAnswer] = Field(description="one a file, in the order of the request")


class Explanation(BaseModel):
    face: FaceAnswer
    heatmap: str | None = Field(
        description="base64 of a PNG of the box, at most 2,048 pixels a side, the more opaque the more speaks for "
        "fake; null where nothing in the face does",
        examples=["iVBORw0KGgo="],
    )


class ModelAnswer(BaseModel):
    classes: list[str] = Field(description="the first is the real one", examples=[["real", "fake"]])
    backbone: str = Field(examples=["xception"])
    image_size: int = Field(examples=[256])
    model: str = Field(description="SHA-256 of the model file")
    data: str = Field(description="SHA-256 of the training data")
    trained_on: str = Field(description="the training data in words", examples=["folder faces"])
    caveat: str = Field(description="what everybody has to be told who is shown a score; mostly empty")
    threshold: float = Field(description="called fake from this P(fake) on", examples=[0.5])
    unsure: list[float] = Field(description="unsure from the first up to the second", examples=[[0.4, 0.6]])
    chosen_on: dict = Field(
        description="figures of the validation images on which these were chosen: n, false_positive_rate, ..."
    )


class Health(BaseModel):
    status: Literal["alive", "ready"]


def _responses(*codes: str, **ok) -> dict[int | str, dict]:
    """The documentation of a route's answers: a good one, and the errors `codes`, an example each."""
    found: dict[int | str, dict] = {200: ok}
    for code in codes:
        status, message = CODES[code]
        entry = found.setdefault(status, {"model": Error, "description": ""})
        examples = entry.setdefault("content", {"application/json": {"examples": {}}})["application/json"]["examples"]
        examples[code] = {"value": {"error": {"code": code, "message": message}}}
        entry["description"] = ", ".join(examples)
        if status == 503:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def _form(one: bool) -> dict:
    binary = {"type": "string", "format": "binary"}
    files = {
        "type": "array",
        "items": binary,
        "minItems": 1,
        "maxItems": 1 if one else limits.FILES,
        "description": f"images, each {limits.FILE_BYTES // limits.MIB} MiB and {limits.PIXELS:,} pixels at most: "
        + ", ".join(limits.FORMATS),
    }
    schema = {"type": "object", "properties": {"files": files}, "required": ["files"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


UPLOADING = (
    "bad_request", "malformed_upload", "token_required", "upload_too_slow", "file_too_large", "request_too_large",
    "too_many_files", "not_multipart", "invalid_parameter", "unknown_field", "no_file", "internal_error", "overloaded",
    "draining", "time_limit",
)  # fmt: skip

# ---------------------------------------------------------------------------------- the application


class Busy:
    """How many requests are being worked on; at the limit the next is turned away before its body is read."""

    def __init__(self, limit: int):
        self._limit = limit
        self.count = 0

    @contextmanager
    def place(self):
        if self.count >= self._limit:
            raise Problem("overloaded")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


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
    busy, budget = Busy(limits.REQUESTS), Budget(limits.HELD_BYTES)
    documented = Depends(HTTPBearer(auto_error=False) if token else lambda: None)

    def allowed(request: Request, _=documented) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip(" \t").encode("latin-1", "replace"), (token or "").encode())
        if token and not (right and scheme.lower() == "bearer"):
            raise Problem("token_required")

    @asynccontextmanager
    async def files_of(request: Request) -> AsyncIterator[list[bytes]]:
        """The uploaded files, once there is room for their request; the time for the answer runs from then."""
        if service.draining:
            raise Problem("draining")
        with busy.place(), Upload(budget) as upload:
            headers = request.headers
            files = await upload.read(headers.get("content-type", ""), headers.get("content-length"), request.stream())
            try:
                async with asyncio.timeout(limits.ANSWER_SECONDS):
                    yield files
            except TimeoutError:
                raise Problem("time_limit") from None

    async def answer(index: int, file: bytes, detect: bool) -> dict:
        try:
            judged = await service.judge(file, detect)
        except Problem as problem:
            if problem.code not in OF_AN_IMAGE:
                raise
            return {"index": index, "status": "error", "faces": [], "error": problem.body()}
        faces = [_face(face) for face in judged.faces]
        width, height = judged.size
        return {"index": index, "status": "faces" if faces else "no_face", "width": width, "height": height,
                "faces": faces}  # fmt: skip

    detecting = Query(description="look for faces; false judges each image as one face, as it is")

    @app.post(
        "/v1/predict",
        dependencies=[Depends(allowed)],
        responses=_responses(*UPLOADING, model=Predictions, description="every image, or its own error"),
        openapi_extra=_form(one=False),
        summary="Judge the faces of one or more images",
        tags=["detector"],
    )
    async def predict(request: Request, detect: Annotated[bool, detecting] = True) -> Response:
        async with files_of(request) as files, asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(i, file, detect)) for i, file in enumerate(files)]
        return JSONResponse({"images": [task.result() for task in tasks]})

    @app.post(
        "/v1/explain",
        dependencies=[Depends(allowed)],
        responses=_responses(*UPLOADING, "one_file_only", "no_such_face", *OF_AN_IMAGE,
                             model=Explanation, description="the judgement and its heatmap"),
        openapi_extra=_form(one=True),
        summary="Show what in a face speaks for fake (Grad-CAM)",
        tags=["detector"],
    )  # fmt: skip
    async def explain(
        request: Request,
        face: Annotated[int, Query(ge=0, lt=limits.FACES, description="number of the face in the prediction")] = 0,
        detect: Annotated[bool, detecting] = True,
    ) -> Response:
        async with files_of(request) as files:
            if len(files) != 1:
                raise Problem("one_file_only")
            judgement, png = await service.explain(files[0], face, detect)
        return JSONResponse({"face": _face(judgement), "heatmap": png and base64.b64encode(png).decode()})

    @app.get(
        "/v1/model",
        dependencies=[Depends(allowed)],
        responses=_responses("bad_request", "token_required", "internal_error", model=ModelAnswer),
        summary="What the model is and how its scores are to be read",
        tags=["detector"],
    )
    def model() -> Response:
        card, calibration = service.card, service.calibration
        figures = {key: value for key, value in service.chosen_on.items() if isinstance(value, int | float | str)}
        return JSONResponse(
            {
                "classes": card.classes, "backbone": card.backbone, "image_size": card.image_size,
                "model": service.digest, "data": card.data_digest, "trained_on": card.trained_on,
                "caveat": card.caveat, "threshold": calibration.threshold,
                "unsure": list(calibration.unsure), "chosen_on": figures,
            }
        )  # fmt: skip

    @app.get(
        "/healthz",
        responses=_responses("bad_request", model=Health),
        summary="Whether the process is alive",
        tags=["operation"],
    )
    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    @app.get(
        "/readyz",
        responses=_responses("bad_request", "draining", model=Health),
        summary="Whether it takes work: the model is loaded and the service is not being stopped",
        tags=["operation"],
    )
    async def readyz() -> Response:
        if not service.ready:
            raise Problem("draining")
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        dependencies=[Depends(allowed)],
        response_class=PlainTextResponse,
        responses=_responses("bad_request", "token_required", description="Prometheus's text format"),
        summary="Counters for Prometheus",
        tags=["operation"],
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return _error(error)

    @app.exception_handler(ExceptionGroup)
    async def problems(request: Request, error: ExceptionGroup) -> Response:  # of the images of one request
        first = error.exceptions[0]
        if not isinstance(first, Problem):
            _log.error("%s failed", request.url.path, exc_info=first)
            first = Problem("internal_error")
        return _error(first)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        where = error.errors()[0]
        name = str(where["loc"][-1])[:40]
        return _error(Problem("invalid_parameter", f"{name}: {where['msg']}"))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return _error(Problem(code_of_status(error.status_code)), error.headers)

    app.add_middleware(Gate, service=service)
    return app


def warm_up(heatmap: GradCam) -> None:
    """Load what the heatmaps need, in the background, so that the first who asks for one need not wait for it.

    A process that ends meanwhile waits for it: TensorFlow takes it badly to be left half imported.
    """
    threading.Thread(target=heatmap.load, name="warm-up").start()


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
                    await _error(Problem("internal_error"))(scope, receive, send_on)
        seconds = time.perf_counter() - start
        route = getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(route, status).inc()
        metrics.seconds.labels(route).observe(seconds)
        _log.info("%s %s %.0f ms", route, status, seconds * 1000)


def _error(problem: Problem, headers=None) -> JSONResponse:
    headers = dict(headers or {})
    if problem.status == 503:
        headers["retry-after"] = str(limits.RETRY_SECONDS)
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": problem.body()}, problem.status, headers)


def _face(face: Judgement) -> dict:
    return {"box": list(face.box), "p_fake": face.p_fake, "label": face.label, "verdict": face.verdict}


def _page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run its own script and style and nothing else."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'", f"script-src {_hashes(page, 'script')}", f"style-src {_hashes(page, 'style')}",
        "img-src 'self' blob: data:", "connect-src 'self'", "form-action 'none'", "base-uri 'none'",
        "frame-ancestors 'none'",
    ]  # fmt: skip
    return page, "; ".join(policy)


def _hashes(page: str, tag: str) -> str:
    blocks: Sequence[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
