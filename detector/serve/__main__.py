"""`python -m detector serve`: the detector as an HTTP service with a page for people."""

import argparse
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from detector.errors import UserError
from detector.serve import limits

if TYPE_CHECKING:
    import uvicorn

    from detector.serve.service import Service

HELP = """\
A page to drop a photo on at /, an HTTP API at /v1/predict and /v1/explain, described in /openapi.json, and /healthz,
/readyz and /metrics (Prometheus). DETECTOR_TOKEN in the environment is the token that /v1 and /metrics ask for.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m detector serve", description=HELP)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--model", metavar="REF", help="a model file, a folder, an MLflow run or a models:/ URI")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    token = os.environ.get("DETECTOR_TOKEN")
    if token and not (token.isascii() and token.isprintable()):
        raise UserError("DETECTOR_TOKEN: may hold ASCII characters alone, as a header does; choose another")
    listener = listen(arguments.host, arguments.port)

    from detector.inference.detector import Detector
    from detector.inference.find_model import find_model
    from detector.inference.openvino import Engine, load_engine
    from detector.models.faces import FaceFinder
    from detector.serve.service import Service

    model = find_model(arguments.model)
    engine = load_engine(model)
    detector = Detector(model, network=engine)
    if detector.card.caveat:
        print(f"warning: {detector.card.caveat}; --model names another", file=sys.stderr)
    service = Service(detector, FaceFinder())
    if isinstance(engine, Engine) and engine.folder.name != service.digest:
        raise UserError(f"{model}: was replaced while the service started; start it again")
    # Heat maps need Keras, which takes seconds to load. A process that ends meanwhile waits for the thread: TensorFlow
    # crashes if it is left half imported.
    threading.Thread(target=lambda: detector.model, name="load Keras").start()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(host).is_loopback:
        guard = "with the token" if token else "by everybody, for DETECTOR_TOKEN is not set"
        print(f"warning: {host} can be reached from other machines, unencrypted, and used {guard}", file=sys.stderr)
    # Uvicorn finishes the requests it has taken, then sends itself the signal again: a stop on demand is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener.listen()  # connections wait from here on until Uvicorn takes them
    print(f"http://{shown}:{port}  {model}", flush=True)
    server(service, token).run([listener])


def server(service: "Service", token: str | None = None) -> "uvicorn.Server":
    """Uvicorn around the service; at SIGTERM it takes no new connection and finishes the requests it has taken."""
    import uvicorn

    from detector.serve.app import create_app

    # Warnings of either library hold bytes of requests.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        create_app(service, token),
        http="h11",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=16 << 10,
        limit_concurrency=limits.CONNECTIONS,
        timeout_keep_alive=limits.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.UPLOAD_SECONDS + limits.ANSWER_SECONDS,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which does not listen yet: connections are refused until the model is loaded.

    Raises:
        UserError: the port is in use or the address is none of this machine's.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take the remainder
        raise UserError(f"--port {port}: must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another with --port or --host") from None
    return listener
