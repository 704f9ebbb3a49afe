import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import UserError
from detector.models import weights as module
from detector.models.backbones import BACKBONES, PublishedWeights
from detector.models.weights import InitialWeights, find_weights

CONTENT = bytes(range(256)) * 9000  # 2.3 MB, more than one chunk
PLACE = "xception/published_notop.h5"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A project's root of its own, no proxy, and nothing to be had from the network by mistake."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "KERAS_STORAGE", "http://127.0.0.1:9/")
    publish(monkeypatch, hashlib.md5(CONTENT).hexdigest())
    return tmp_path


def publish(monkeypatch, digest: str) -> None:
    entry = replace(BACKBONES["xception"], imagenet=PublishedWeights(PLACE, digest))
    monkeypatch.setitem(BACKBONES, "xception", entry)


class Server(http.server.ThreadingHTTPServer):
    """Answers every request by `answer(handler)` and notes the paths asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.released = threading.Event()  # for answers that hang
        self.answer = whole


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, *_):
        pass

    def head(self, **headers):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def whole(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT)


def without_length(handler: Handler) -> None:
    handler.head()
    handler.wfile.write(CONTENT)


def altered(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:-1] + b"?")


def cut_short(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:1_500_000])


def cut_within_a_chunk(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.head(Transfer_Encoding="chunked")
    handler.wfile.write(b"FFFF\r\n" + CONTENT[:100])
    handler.close_connection = True


def login_page(handler: Handler) -> None:
    page = b"<html>Please sign in to the network</html>"
    handler.head(Content_Length=len(page))
    handler.wfile.write(page)


def not_found(handler: Handler) -> None:
    handler.send_error(404)


def broken_server(handler: Handler) -> None:
    handler.send_error(503)


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def senseless_length(handler: Handler) -> None:
    handler.head(Content_Length="many")
    handler.wfile.write(b"x")


def silent(handler: Handler) -> None:
    handler.server.released.wait(20)


def stalled(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:1000])
    handler.wfile.flush()
    handler.server.released.wait(20)


FAILURES = [altered, cut_short, cut_within_a_chunk, login_page, not_found, broken_server, no_http, senseless_length]
FAILURES += [silent, stalled]


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setattr(module, "KERAS_STORAGE", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(module, "TIMEOUT", 0.3)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def kept(root: Path) -> list[str]:
    """The files under data/weights but for the lock."""
    return sorted(file.name for file in (root / "data" / "weights").iterdir() if file.suffix != ".lock")


# ---- what the parameter means ----------------------------------------------------------------------------------


def test_none_is_random_and_asks_nobody(root):
    assert find_weights("none", "xception") == InitialWeights("random")
    assert not (root / "data").exists()


def test_a_file_is_taken_from_the_root(root, monkeypatch, tmp_path_factory):
    (root / "mine.weights.h5").touch()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert find_weights("mine.weights.h5", "xception") == InitialWeights("file", root.resolve() / "mine.weights.h5")
    absolute = str(root / "mine.weights.h5")
    assert find_weights(absolute, "xception") == InitialWeights("file", Path(absolute).resolve())


@pytest.mark.parametrize("name", ["gone.h5", "Auto", "IMAGENET", "None"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(UserError, match=rf"model\.weights: {name} is not there"):
        find_weights(name, "xception")


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
@pytest.mark.parametrize("answer", [whole, without_length], ids=lambda f: f.__name__)
def test_published_weights_are_downloaded_once_and_kept(root, server, weights, answer):
    server.answer = answer
    path = root.resolve() / "data" / "weights" / "published_notop.h5"
    for _ in range(3):
        assert find_weights(weights, "xception") == InitialWeights("imagenet", path)
        assert path.read_bytes() == CONTENT
    assert server.asked == [f"/{PLACE}"]
    assert kept(root) == ["published_notop.h5"]


def test_a_file_that_somebody_put_there_is_used_without_network(root):
    path = root / "data" / "weights" / "published_notop.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert find_weights("imagenet", "xception").path == path.resolve()


def test_a_file_that_is_not_whole_is_replaced(root, server):
    path = root / "data" / "weights" / "published_notop.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:1000])
    assert find_weights("imagenet", "xception").path == path.resolve()
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_not_whole_is_not_used_without_network(root):
    path = root / "data" / "weights" / "published_notop.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:1000])
    assert find_weights("auto", "xception").origin == "random"
    with pytest.raises(UserError, match=hashlib.md5(CONTENT).hexdigest()):
        find_weights("imagenet", "xception")


def test_a_sha256_is_known_by_its_length(root, server, monkeypatch):
    publish(monkeypatch, hashlib.sha256(CONTENT).hexdigest())
    assert find_weights("imagenet", "xception").path.read_bytes() == CONTENT
    publish(monkeypatch, "0" * 64)
    with pytest.raises(UserError, match=rf"not the published one\).*published_notop\.h5, SHA256 {'0' * 64}, into"):
        find_weights("imagenet", "xception")


# ---- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", FAILURES, ids=lambda f: f.__name__)
def test_a_failed_download_is_told_and_leaves_nothing(root, server, answer):
    server.answer = answer
    found = find_weights("auto", "xception")
    assert found.origin == "random" and found.path is None
    assert found.note.startswith("ImageNet weights cannot be downloaded (")
    assert len(found.note.splitlines()) == 1 and "()" not in found.note
    assert kept(root) == []
    with pytest.raises(UserError) as caught:
        find_weights("imagenet", "xception")
    message = str(caught.value)
    assert message.startswith(f"model.weights: {found.note}; put published_notop.h5, MD5 ")
    assert message.endswith("into data/weights/, or set model.weights to auto, none or a file")
    assert kept(root) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(not_found, "Not Found"), (broken_server, "Service Unavailable"), (silent, "timed out"), (stalled, "timed out")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_reason_is_named(server, answer, reason):
    server.answer = answer
    assert reason in find_weights("auto", "xception").note


def test_an_unreachable_server(root):
    assert "Connection refused" in find_weights("auto", "xception").note
    assert kept(root) == []


def test_a_name_that_does_not_resolve(monkeypatch):
    def unknown(*_, **__):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr(module, "KERAS_STORAGE", "http://storage.invalid/")
    assert "Name or service not known" in find_weights("auto", "xception").note


def test_after_a_failure_the_next_call_tries_again(server):
    server.answer = cut_short
    assert find_weights("auto", "xception").origin == "random"
    server.answer = whole
    assert find_weights("auto", "xception").origin == "imagenet"


def test_an_interrupted_download_leaves_nothing(root, server, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_weights("auto", "xception")
    assert kept(root) == []


def test_a_place_that_cannot_be_written_counts_as_not_to_be_had(root):
    (root / "data").write_text("a file, not a folder")
    assert find_weights("auto", "xception").origin == "random"


def test_several_at_once_download_once(root, server):
    def slowly(handler: Handler) -> None:
        time.sleep(0.1)
        whole(handler)

    server.answer = slowly
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: find_weights("imagenet", "xception"), range(4)))
    assert len(server.asked) == 1
    assert {each.path.read_bytes() == CONTENT for each in found} == {True}
    assert kept(root) == ["published_notop.h5"]
