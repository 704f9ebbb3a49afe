"""What goes over the wire, for /openapi.json."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from detector.serve import limits
from detector.serve.problems import CODES

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


def responses(*codes: str, **ok) -> dict[int | str, dict]:
    """The documentation of a route's answers: a good one, and the errors `codes`, an example each."""
    documented: dict[int | str, dict] = {200: ok}
    for code in codes:
        status, message = CODES[code]
        entry = documented.setdefault(status, {"model": Error, "description": ""})
        examples = entry.setdefault("content", {"application/json": {"examples": {}}})["application/json"]["examples"]
        examples[code] = {"value": {"error": {"code": code, "message": message}}}
        entry["description"] = ", ".join(examples)
        if status == 503:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return documented


def form(one: bool) -> dict:
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
