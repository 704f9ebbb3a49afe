"""Uploads: multipart/form-data read as it comes in, kept in memory within bounds, never on disk."""

import asyncio
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from detector.serve import limits
from detector.serve.problems import Problem

FIELD = b"files"


class Budget:
    """How many requests may be open at a time, and how many bytes of uploads all of them may hold together."""

    def __init__(self, requests: int, bytes_held: int):
        self._free_requests, self._free_bytes = requests, bytes_held

    def take(self, requests: int = 0, count: int = 0) -> None:
        """Take so many requests and bytes; Problem, overloaded, if they are not free."""
        if requests > self._free_requests or count > self._free_bytes:
            raise Problem("overloaded")
        self._free_requests -= requests
        self._free_bytes -= count

    def give_back(self, requests: int, count: int) -> None:
        self._free_requests += requests
        self._free_bytes += count


class Upload:
    """The files of one request; a context that takes a place in the budget, and gives it and the bytes back.

    Attributes:
        files: their bytes, in order.
    """

    def __init__(self, budget: Budget):
        self.files: list[bytes] = []
        self._budget = budget
        self._taken = 0

    def __enter__(self) -> "Upload":
        self._budget.take(requests=1)
        return self

    def __exit__(self, *_) -> None:
        self.files = []
        self._budget.give_back(1, self._taken)

    async def read(self, content_type: str, content_length: str | None, stream: AsyncIterator[bytes]) -> list[bytes]:
        """All files of the form, each within the limits at every moment of reading, whatever the headers say.

        Args:
            content_type, content_length: the request's headers; the length may be absent or a lie.
            stream: the body, in pieces.

        Raises:
            Problem: not_multipart, malformed_upload, request_too_large, file_too_large, too_many_files,
                unknown_field, no_file, upload_too_slow, overloaded.
        """
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise Problem("not_multipart")
        if content_length and content_length.isdigit() and int(content_length) > limits.REQUEST_BYTES:
            raise Problem("request_too_large")
        form = _Form()
        try:
            parser = MultipartParser(options.get(b"boundary") or b"", form.callbacks())
            if not options.get(b"boundary"):
                raise Problem("malformed_upload", "the content type names no boundary")
            async with asyncio.timeout(limits.UPLOAD_SECONDS):
                async for piece in stream:
                    self._budget.take(count=len(piece))
                    self._taken += len(piece)
                    if self._taken > limits.REQUEST_BYTES:
                        raise Problem("request_too_large")
                    parser.write(piece)
        except FormParserError:
            raise Problem("malformed_upload") from None
        except TimeoutError:
            raise Problem("upload_too_slow") from None
        if not form.ended:
            raise Problem("malformed_upload")
        if not form.files:
            raise Problem("no_file")
        self.files = [bytes(file) for file in form.files]
        return self.files


class _Form:
    """Gathers the parts; of their headers only the field's name counts."""

    def __init__(self):
        self.files: list[bytearray] = []
        self.ended = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""

    def callbacks(self) -> dict:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise Problem("malformed_upload")
        if options[b"name"] != FIELD:
            raise Problem("unknown_field")
        if b"filename" not in options:  # text, not a file
            raise Problem("no_file")
        if len(self.files) == limits.FILES:
            raise Problem("too_many_files")
        self.files.append(bytearray())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if len(self.files[-1]) + end - start > limits.FILE_BYTES:
            raise Problem("file_too_large")
        self.files[-1] += memoryview(data)[start:end]

    def _end(self) -> None:
        self.ended = True
