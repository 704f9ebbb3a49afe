"""The API over a real connection, the network a stand-in."""

import base64
import hashlib
import io
import itertools
import logging
import re
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import requests
from PIL import Image

from detector.serve import limits
from detector.serve.problems import CODES, OF_AN_IMAGE

SIZE = 32  # of the stand-in's input


def problem(response: requests.Response, code: str) -> None:
    """The response is exactly this error."""
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"].keys() == {"code", "message"}
    assert (response.json()["error"]["code"], response.status_code) == (code, CODES[code][0])
    assert ("retry-after" in response.headers) == (response.status_code == 503)


def raw(live, *pieces: bytes, endless: Iterable[bytes] = (), wait: float = 0, finish: bool = True) -> bytes:
    """What the service answers to bytes on a bare connection, until it closes it."""
    with socket.create_connection(live.address, timeout=live.patience) as connection:
        try:
            for piece in itertools.chain(pieces, endless):
                connection.sendall(piece)
                time.sleep(wait)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # the service has had enough
            pass
        answer = b""
        try:
            while more := connection.recv(65536):
                answer += more
        except ConnectionResetError:
            pass
        return answer


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
CHUNKED = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---- answers --------------------


def test_every_file_gets_its_faces_or_its_own_error_in_order(live, picture):
    response = live.post(
        "/v1/predict", picture(240), b"no image", picture(51, 100, 40), picture(10, 40, 60), picture(9)[:50], b""
    )
    assert response.status_code == 200
    images = response.json()["images"]
    assert [image["index"] for image in images] == [0, 1, 2, 3, 4, 5]
    assert [image["status"] for image in images] == ["faces", "error", "faces", "no_face", "error", "error"]
    assert [image.get("error", {}).get("code") for image in images] == [
        None, "not_an_image", None, None, "broken_image", "empty_file",
    ]  # fmt: skip
    assert (images[2]["width"], images[2]["height"]) == (100, 40)
    assert [face["box"] for face in images[2]["faces"]] == [[0, 0, 50, 40], [50, 0, 100, 40]]
    (face,) = images[0]["faces"]
    assert face["p_fake"] == pytest.approx(240 / 255, abs=1e-6)
    assert (face["label"], face["verdict"]) == ("fake", "fake")


@pytest.mark.parametrize(
    ("level", "label", "verdict"),
    [(50, "real", "real"), (120, "real", "unsure"), (135, "fake", "unsure"), (200, "fake", "fake")],
)
def test_label_and_verdict_follow_the_calibration(live, picture, level, label, verdict):
    (face,) = live.post("/v1/predict", picture(level)).json()["images"][0]["faces"]
    assert (face["label"], face["verdict"]) == (label, verdict)


@pytest.mark.parametrize("format", limits.FORMATS)
def test_every_format_is_taken(live, picture, format):
    (face,) = live.post("/v1/predict", picture(200, format=format)).json()["images"][0]["faces"]
    assert face["p_fake"] == pytest.approx(200 / 255, abs=0.01)


def test_without_detection_the_whole_image_is_the_face(live, picture):
    (image,) = live.post("/v1/predict?detect=false", picture(10, 40, 60)).json()["images"]
    assert [face["box"] for face in image["faces"]] == [[0, 0, 40, 60]]


def test_the_heatmap_has_the_size_of_the_face(live, picture):
    answer = live.post("/v1/explain?face=1", picture(200, 100, 40)).json()
    assert answer["face"]["box"] == [50, 0, 100, 40]
    heat = Image.open(io.BytesIO(base64.b64decode(answer["heatmap"])))
    assert (heat.size, heat.mode) == ((50, 40), "RGBA")
    alpha = np.asarray(heat)[..., 3]
    assert (alpha[:19] == 255).all() and (alpha[21:] == 0).all()


def test_a_face_that_nothing_speaks_against_has_no_heatmap(live, picture):
    assert live.post("/v1/explain", picture(5)).json()["heatmap"] is None


@pytest.mark.parametrize(
    ("path", "files", "code"),
    [
        ("/v1/explain?face=2", 1, "no_such_face"),
        ("/v1/explain", 2, "one_file_only"),
        ("/v1/explain?face=-1", 1, "invalid_parameter"),
        ("/v1/explain?face=two", 1, "invalid_parameter"),
        ("/v1/predict?detect=perhaps", 1, "invalid_parameter"),
        ("/v1/predict", limits.FILES + 1, "too_many_files"),
        ("/v1/predict", 0, "unknown_field"),
        ("/v2/predict", 1, "not_found"),
        ("/healthz", 1, "method_not_allowed"),
    ],
)
def test_what_is_asked_wrongly_is_said_so(live, picture, path, files, code):
    problem(live.post(path, *[picture()] * files), code)


@pytest.mark.parametrize(("file", "code"), [(b"", "empty_file"), (b"GIF89a", "not_an_image"), (None, "broken_image")])
def test_what_is_no_image_cannot_be_explained(live, picture, file, code):
    problem(live.post("/v1/explain", picture()[:60] if file is None else file), code)


def test_a_failure_is_an_answer_too_and_the_service_lives_on(live, picture, caplog):
    live.network.go = None  # a bug: the next batch raises
    problem(live.post("/v1/predict", picture()), "internal_error")
    problem(live.post("/v1/explain", picture()), "internal_error")
    live.network.go = threading.Event()
    live.network.go.set()
    assert live.post("/v1/predict", picture()).status_code == 200


# ---- limits --------------------


@pytest.mark.parametrize("content_type", ["application/json", "image/png", "", "multipart/mixed; boundary=b"])
def test_another_content_type_is_refused(live, content_type):
    response = requests.post(
        live.url + "/v1/predict", data=b"x", headers={"content-type": content_type}, timeout=live.patience
    )
    problem(response, "not_multipart")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nonsense", PART, PART + b"data", b"--b\r\n\r\nno headers\r\n--b--\r\n", b"--b--\r\n" + PART,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", b"--b\r\n" + b"A: b\r\n" * 50 + b"\r\n",
        b"--b\r\nX: " + b"y" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_body_is_refused(live, body):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = requests.post(live.url + "/v1/predict", data=body, headers=headers, timeout=live.patience)
    assert response.json()["error"]["code"] in ("malformed_upload", "no_file")
    for boundary in ("", "; boundary=", "; boundary=" + "x" * 300):
        headers = {"content-type": "multipart/form-data" + boundary}
        problem(
            requests.post(live.url + "/v1/predict", data=body, headers=headers, timeout=live.patience),
            "malformed_upload",
        )


def test_too_large_files_and_requests_are_refused_while_they_come_in(live, monkeypatch):
    monkeypatch.setattr(limits, "FILE_BYTES", 1000)
    monkeypatch.setattr(limits, "REQUEST_BYTES", 3000)
    problem(live.post("/v1/predict", b"x" * 1001), "file_too_large")
    problem(live.post("/v1/predict", b"x" * 900, b"x" * 900, b"x" * 900), "request_too_large")
    assert live.post("/v1/predict", b"x" * 1000, b"y").status_code == 200
    # a length that is stated is believed when it is too much, and one that is absent or a lie does not help
    answer = raw(live, HEAD + b"Content-Length: 4000\r\nConnection: close\r\n\r\n", finish=False)
    assert b"413" in answer.split(b"\r\n")[0] and b"request_too_large" in answer
    answer = raw(live, HEAD + CHUNKED, chunk(PART), endless=(chunk(b"x" * 500) for _ in range(10_000)))
    assert (
        not answer or b"_too_large" in answer
    )  # lost with a reset, or by the file or, in one large piece, by the request


def test_a_slow_upload_is_ended(live, monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 0.3)
    answer = raw(live, HEAD + b"Content-Length: 500\r\nConnection: close\r\n\r\n" + PART, finish=False)
    assert b"408" in answer.split(b"\r\n")[0] and b"upload_too_slow" in answer


def test_one_connection_too_many_is_turned_away(serve, monkeypatch):
    monkeypatch.setattr(limits, "CONNECTIONS", 3)
    with serve() as live:
        held = [socket.create_connection(live.address) for _ in range(3)]
        live.until(lambda: len(live.server.server_state.connections) == 3)
        assert live.get("/healthz").status_code == 503
        for connection in held:
            connection.close()
        live.until(lambda: not live.server.server_state.connections)
        assert live.get("/healthz").status_code == 200


@pytest.mark.parametrize("request_line", [b"\x00\x01\x02\r\n\r\n", b"GET / FTP/1.1\r\n\r\n", b"GET  /\r\n\r\n"])
def test_bytes_that_are_no_http_request_get_status_400(live, request_line):
    assert raw(live, request_line).startswith(b"HTTP/1.1 400")


def test_bombs_are_refused_by_their_headers(live, picture, monkeypatch):
    monkeypatch.setattr(limits, "PIXELS", 1599)
    monkeypatch.setattr("detector.images.MAX_SCANS", 0)
    small = live.post("/v1/predict", picture(), picture(0, 39, 41), picture(0, 20, 20, "JPEG")).json()["images"]
    assert [image.get("error", {}).get("code") for image in small] == ["too_many_pixels", None, "broken_image"]


def test_overload_is_said_at_once_and_what_was_taken_is_answered(serve, picture, monkeypatch):
    monkeypatch.setattr(limits, "REQUESTS", 3)
    with serve() as live, ThreadPoolExecutor(3) as pool:
        live.network.go.clear()
        taken = [pool.submit(live.post, "/v1/predict", picture(level)) for level in (10, 20, 30)]
        live.until(lambda: live.metric("detector_requests_in_flight") >= 4)  # and the one that asks
        problem(live.post("/v1/predict", picture()), "overloaded")
        assert live.get("/readyz").status_code == 200
        live.network.go.set()
        scores = [future.result().json()["images"][0]["faces"][0]["p_fake"] for future in taken]
        assert scores == pytest.approx([10 / 255, 20 / 255, 30 / 255], abs=1e-6)
        assert live.post("/v1/predict", picture()).status_code == 200


def test_uploads_together_are_bounded_and_their_memory_comes_back(serve, picture, monkeypatch):
    monkeypatch.setattr(limits, "HELD_BYTES", 20_000)
    with serve() as live:
        problem(live.post("/v1/predict", b"x" * 30_000), "overloaded")
        for _ in range(5):
            assert live.post("/v1/predict", b"x" * 15_000).status_code == 200


def test_the_crops_that_wait_are_bounded(serve, picture, monkeypatch):
    monkeypatch.setattr(limits, "CROPS", 3)
    with serve() as live:
        problem(live.post("/v1/predict", *[picture(1, 100, 40)] * 16), "overloaded")
        live.until(
            lambda: live.post("/v1/predict", picture(1, 100, 40)).status_code == 200
        )  # what was cancelled is gone


def test_an_answer_that_takes_too_long_is_given_up(live, picture, monkeypatch):
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 0.2)
    live.network.go.clear()
    problem(live.post("/v1/predict", picture(), picture()), "time_limit")
    monkeypatch.setattr(limits, "ANSWER_SECONDS", live.patience)
    live.network.go.set()
    assert live.post("/v1/predict", picture()).status_code == 200


def test_clients_share_batches(live, picture):
    live.network.go.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(live.post, "/v1/predict", picture(level)) for level in range(8)]
        live.until(lambda: live.metric("detector_queue_depth") == 7 or live.network.batches[:1] > [1])
        live.network.go.set()
        scores = [answer.result().json()["images"][0]["faces"][0]["p_fake"] for answer in answers]
    assert scores == pytest.approx([level / 255 for level in range(8)], abs=1e-6)
    assert len(live.network.batches) < 8


# ---- operation --------------------


def test_stopping_finishes_what_was_taken_and_takes_no_more(live, picture):
    live.network.go.clear()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(live.post, "/v1/predict", picture(100))
        live.until(lambda: live.network.batches)
        live.server.should_exit = True

        def refused() -> bool:
            try:
                return live.get("/healthz").status_code == 0
            except requests.ConnectionError:
                return True

        live.until(refused)
        live.network.go.set()
        assert taken.result().json()["images"][0]["faces"][0]["p_fake"] == pytest.approx(100 / 255, abs=1e-6)
    live.until(lambda: not live.service.ready)


def test_a_closed_service_says_that_it_is_being_stopped(live, picture):
    live.service.close()
    problem(live.get("/readyz"), "draining")
    problem(live.post("/v1/predict", picture()), "draining")
    assert live.get("/healthz").json() == {"status": "alive"}


def test_heatmaps_nobody_waits_for_are_not_drawn(serve, picture, monkeypatch):
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 2)
    go, drawn = threading.Event(), []

    def slow(pixels: np.ndarray) -> np.ndarray:
        drawn.append(pixels.shape)
        go.wait(live.patience)
        return np.ones(pixels.shape[:2], np.float32)

    with serve(heatmap=slow) as live, ThreadPoolExecutor(6) as pool:
        ask = partial(pool.submit, live.post, "/v1/explain?detect=false", picture(200, 1500, 1500))
        asked = [ask()]
        live.until(lambda: drawn)
        asked += [ask() for _ in range(5)]
        for one in asked:
            problem(one.result(), "time_limit")
        go.set()
        monkeypatch.setattr(limits, "ANSWER_SECONDS", live.patience)
        assert live.post("/v1/explain", picture()).status_code == 200
    assert drawn == [(SIZE, SIZE, 3)] * 2  # the one that had begun, and the last


def test_the_token_guards_all_but_page_and_health(serve, picture):
    with serve(token="sesame") as live:
        for given in (None, "Bearer", "Bearer wrong", "Basic sesame", "Bearer sesam\xe9", "sesame"):
            headers = {"authorization": given.encode("latin-1")} if given else {}
            for response in (
                live.post("/v1/predict", picture(), headers=headers),
                live.get("/v1/model", headers=headers),
                live.get("/metrics", headers=headers),
            ):
                problem(response, "token_required")
                assert response.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer sesame", "bearer sesame", "BEARER  sesame"):
            assert live.post("/v1/predict", picture(), headers={"authorization": given}).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert live.get(path).status_code == 200


def test_the_metrics_count_and_no_label_comes_from_a_client(live, picture):
    live.post("/v1/predict", picture(240, 100, 40), b"broken")
    live.get("/secret-path")
    requests.request("SECRET", live.url + "/healthz", timeout=live.patience)
    text = live.get("/metrics").text
    assert live.metric('detector_requests_total{route="/v1/predict",status="200"}') == 1
    assert live.metric('detector_requests_total{route="other",status="404"}') == 1
    assert live.metric('detector_faces_total{verdict="fake"}') == 2
    assert live.metric('detector_images_total{outcome="not_an_image"}') == 1
    assert live.metric("detector_batch_size_sum") == 2
    assert live.metric('detector_request_seconds_count{route="/v1/predict"}') == 1
    assert "secret" not in text.lower()


def test_nothing_of_an_image_or_its_name_is_logged(live, picture, caplog):
    caplog.set_level(logging.DEBUG)
    live.post("/v1/predict", picture(), b"secret pixels")
    live.post("/v1/explain?face=7&secret=1", picture())
    live.get("/secret-path")
    assert any("/v1/predict 200" in line for line in caplog.messages)
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("urllib3")]  # which is the client
    assert "secret" not in " ".join(ours)


def test_nothing_is_written_to_disk(live, picture, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))  # whoever spools fails
    assert live.post("/v1/predict", b"x" * 3_000_000, picture()).status_code == 200


def test_headers_keep_browsers_from_sniffing_framing_and_storing(live, picture):
    responses = [
        live.get("/"), live.get("/healthz"), live.get("/nothing"), live.post("/v1/predict", picture()),
        live.post("/v1/explain", picture()), live.post("/v1/predict"),
    ]  # fmt: skip
    for response in responses:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "camera=()" in response.headers["permissions-policy"]
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert "server" not in response.headers


def test_the_policy_names_the_pages_own_script_and_style(live):
    response = live.get("/")
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in response.headers["content-security-policy"]
    assert not re.search(r"\son\w+=|style=|https?://|@import|url\(", response.text.split("<body>")[1])


def test_the_document_names_every_code(live):
    text = live.get("/openapi.json").text
    assert not [code for code in CODES if f'"{code}"' not in text and code not in ("not_found", "method_not_allowed")]
    assert set(OF_AN_IMAGE) < set(CODES)


def test_the_model_says_what_its_scores_mean(live):
    model = live.get("/v1/model").json()
    assert (model["threshold"], model["unsure"]) == (0.5, [0.4, 0.6])
    assert model["chosen_on"]["false_positive_rate"] == 0.08
    assert model["model"] == hashlib.sha256(live.service.detector.path.read_bytes()).hexdigest()


def test_a_client_that_leaves_is_no_failure_of_the_service(live, caplog):
    with socket.create_connection(live.address) as connection:
        connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n" + PART)
        live.until(lambda: live.metric("detector_requests_in_flight") >= 2)  # it, and the one that asks
    live.until(lambda: live.metric('detector_requests_total{route="/v1/predict",status="499"}') == 1)
    assert live.metric('detector_requests_total{route="/v1/predict",status="500"}') == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
