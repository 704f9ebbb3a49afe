"""What can go wrong with a request: a stable code each, the status it comes with, and a sentence for people."""

from http import HTTPStatus

from detector.serve import limits

CODES: dict[str, tuple[int, str]] = {
    # of a request
    "bad_request": (400, "this is no HTTP request"),
    "malformed_upload": (400, "the body is no multipart/form-data, or is cut short"),
    "token_required": (401, "this service asks for a token: send `Authorization: Bearer <token>`"),
    "not_found": (404, "there is nothing at this address; /openapi.json lists what there is"),
    "method_not_allowed": (405, "this address takes another method; the header Allow names it"),
    "upload_too_slow": (408, f"the upload took more than {limits.UPLOAD_SECONDS} s"),
    "file_too_large": (413, f"a file is larger than {limits.FILE_BYTES // limits.MIB} MiB"),
    "request_too_large": (413, f"the request is larger than {limits.REQUEST_BYTES // limits.MIB} MiB"),
    "not_multipart": (415, "send multipart/form-data, the images in fields named `files`"),
    "invalid_parameter": (422, "a parameter is not as /openapi.json describes it"),
    "unknown_field": (422, "the form has a field other than `files`"),
    "too_many_files": (422, f"more than {limits.FILES} files in one request"),
    "no_file": (422, "the form has no file in a field `files`"),
    "one_file_only": (422, "exactly one image can be explained at a time"),
    "no_such_face": (422, "the image has no face of this number"),
    "internal_error": (500, "the service failed; the request may be sent again"),
    "overloaded": (503, "more is waiting than can be done soon; come back after the time in Retry-After"),
    "draining": (503, "the service is being stopped; another instance may answer"),
    "time_limit": (504, f"no answer within {limits.ANSWER_SECONDS} s"),
    # of an image
    "empty_file": (422, "the file is empty"),
    "not_an_image": (422, f"not an image, or none of {', '.join(limits.FORMATS)}"),
    "broken_image": (422, "the image is damaged or cut short"),
    "too_many_pixels": (422, f"the image has more than {limits.PIXELS:,} pixels"),
}
OF_AN_IMAGE = ("empty_file", "not_an_image", "broken_image", "too_many_pixels")


class Problem(Exception):
    """A request, or one image of it, that cannot be answered as asked.

    Attributes:
        code: a key of `CODES`. status: the HTTP status. message: the sentence.
    """

    def __init__(self, code: str, detail: str = ""):
        """`detail` replaces the sentence of the code; it holds nothing that the request has not said itself."""
        self.code = code
        self.status, sentence = CODES[code]
        self.message = detail or sentence
        super().__init__(self.message)

    def body(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


def code_of_status(status: int) -> str:
    """The code for a status that the framework chose."""
    for code, (known, _) in CODES.items():
        if known == status:
            return code
    return "bad_request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal_error"
