"""`python -m detector serve`: the detector as an HTTP service with a page for people."""

import argparse
import ipaddress
import logging
import os
import signal
import socket
import sys

from detector.errors import UserError
from detector.serve import limits

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

    import uvicorn

    from detector.inference.find_model import find_model
    from detector.inference.openvino import Engine, load_engine
    from detector.models.file import read_card
    from detector.serve.app import create_app, warm_up
    from detector.serve.protocol import Protocol, Server
    from detector.serve.service import Faces, GradCam, Service

    model = find_model(arguments.model)
    if caveat := read_card(model).caveat:
        print(f"warning: {caveat}; --model names another", file=sys.stderr)
    heatmap = GradCam(model)
    engine = load_engine(model)
    service = Service(model, engine, Faces(), heatmap)
    if isinstance(engine, Engine) and engine.folder.name != service.digest:
        raise UserError(f"{model}: was replaced while the service started; start it again")
    warm_up(heatmap)
    config = uvicorn.Config(
        create_app(service, token),
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=16 << 10,
        timeout_keep_alive=limits.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.UPLOAD_SECONDS + limits.ANSWER_SECONDS,
    )
    for name in ("uvicorn", "python_multipart"):  # their warnings hold bytes of requests
        logging.getLogger(name).setLevel(logging.ERROR)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(host).is_loopback:
        guard = "with the token" if token else "by everybody, for DETECTOR_TOKEN is not set"
        print(f"warning: {host} can be reached from other machines, unencrypted, and used {guard}", file=sys.stderr)
    # A stop that was asked for is no failure, before Uvicorn minds the signal and when it sends it to itself again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Server(config, service, f"http://{shown}:{port}  {model}").run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which does not listen yet: who connects before the model is there is refused.

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
