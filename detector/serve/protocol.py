"""What Uvicorn leaves open: clients that are slow to say or to hear, too many of them, and notice before a stop."""

import asyncio
import json
import signal
from http import HTTPStatus

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from detector.serve import limits
from detector.serve.problems import Problem
from detector.serve.service import Service


class Protocol(H11Protocol):
    """Closes a connection whose client is too slow to say or to hear something, and turns away one too many."""

    _timer: asyncio.TimerHandle | None = None
    _patience: asyncio.TimerHandle | None = None
    _waits_for: str | None = None

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.access_log = False  # its lines hold what clients ask for, to the letter

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS:
            self._refuse(Problem("overloaded"))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()
        if self.transport.is_closing():  # by Uvicorn, as the request asked for
            self._lose_patience(True)

    def connection_lost(self, exc) -> None:
        self._await(None, 0)
        self._lose_patience(False)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._lose_patience(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._lose_patience(self.transport.is_closing())

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._lose_patience(True)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem("bad_request"))

    def _watch(self) -> None:
        """Set the clock that belongs to the state of the connection; it runs on while that state lasts."""
        if self.conn.their_state is h11.IDLE:
            waits = self.cycle is None or bool(self.conn.trailing_data[0])  # else it is Uvicorn's keep-alive
            self._await("headers" if waits else None, limits.HEADER_SECONDS)
        elif self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._await("the rest", limits.LINGER_SECONDS)
        else:
            self._await(None, 0)

    def _await(self, what: str | None, seconds: float) -> None:
        if what == self._waits_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waits_for = what
        self._timer = self.loop.call_later(seconds, self._close) if what else None

    def _lose_patience(self, soon: bool) -> None:
        """Give the client `SEND_SECONDS` to take what it was sent, or no longer count them; they run on if they do."""
        if self._patience is not None and not soon:
            self._patience.cancel()
            self._patience = None
        elif self._patience is None and soon:
            self._patience = self.loop.call_later(limits.SEND_SECONDS, self.transport.abort)

    def _close(self) -> None:
        """Once the client has taken what it was sent, but not later than its time for that."""
        self.transport.close()
        self._lose_patience(True)

    def _refuse(self, problem: Problem) -> None:
        body = json.dumps({"error": problem.body()}).encode()
        head = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *([f"retry-after: {limits.RETRY_SECONDS}"] if problem.status == 503 else []),
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self._close()


class Server(uvicorn.Server):
    """Uvicorn, which at SIGTERM first lets the service say that it is being stopped, then finishes what was taken."""

    def __init__(self, config: uvicorn.Config, service: Service, greeting: str):
        """`greeting` is printed once connections are taken."""
        super().__init__(config)
        self._service, self._greeting = service, greeting

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._greeting, flush=True)

    def handle_exit(self, sig, frame) -> None:
        again = self._service.draining
        self._service.draining = True
        if sig == signal.SIGTERM and not again:
            self._captured_signals.append(sig)
            asyncio.get_running_loop().call_later(limits.NOTICE_SECONDS, setattr, self, "should_exit", True)
        else:
            super().handle_exit(sig, frame)
