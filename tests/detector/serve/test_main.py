"""The command: its one line, its errors, and how it ends."""

import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from benchmarks import serve
from detector.errors import UserError
from detector.serve import __main__ as command


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_the_users_error(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        used = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6")
    with used, pytest.raises(UserError, match=f"--port {used.getsockname()[1]}.*in use"):
        command.listen(host, used.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("192.0.2.1", 0), ("no such host", 0)])
def test_an_address_that_cannot_be_had_is_the_users_error(host, port):
    with pytest.raises(UserError, match="--port"):
        command.listen(host, port)


def test_sigterm_ends_it_without_a_failure():
    with serve.standing_in() as (url, process):
        post = serve.poster(url)
        assert post(serve.images(64, 1)[0]).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_help_is_quick():
    code = "import sys; sys.argv[1:] = ['--help']\nfrom detector.serve.__main__ import main\n" \
        "try: main()\nexcept SystemExit: print('tensorflow' in sys.modules, 'fastapi' in sys.modules)"  # fmt: skip
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.endswith("False False\n") and "--port" in done.stdout, done.stderr


class Engine:
    folder = Path("model.openvino") / ("0" * 64)


def test_a_model_that_was_replaced_during_the_start_is_not_served(monkeypatch, card_only):
    monkeypatch.setattr("detector.inference.find_model.find_model", lambda reference: card_only)
    monkeypatch.setattr("detector.inference.openvino.load_engine", lambda path: Engine())
    monkeypatch.setattr("detector.inference.openvino.Engine", Engine)
    monkeypatch.setattr("detector.models.faces.FaceFinder", lambda: None)
    monkeypatch.setattr(sys, "argv", ["serve", "--port", "0"])
    with pytest.raises(UserError, match="was replaced while the service started; start it again"):
        command.main()


@pytest.mark.parametrize("token", ["é", "a\nb"])
def test_a_token_that_no_header_can_hold_is_refused(monkeypatch, token):
    monkeypatch.setenv("DETECTOR_TOKEN", token)
    monkeypatch.setattr(sys, "argv", ["serve"])
    with pytest.raises(UserError, match="DETECTOR_TOKEN: may hold ASCII characters alone"):
        command.main()


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".b", "no such host"])
def test_a_host_that_is_none_is_one_line(host):
    with pytest.raises(UserError, match=f"--host {host} --port 0: .*; choose another"):
        command.listen(host, 0)


def test_who_listens_to_everybody_is_warned(monkeypatch, capsys, card_only):
    ran = []
    stand_ins = {
        "detector.inference.find_model": {"find_model": lambda reference: card_only},
        "detector.inference.openvino": {"load_engine": lambda path: Engine(), "Engine": type(None)},
    }
    for name, content in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))
    monkeypatch.setattr("detector.models.faces.FaceFinder", lambda: None)
    monkeypatch.setattr("detector.inference.detector.Detector.model", None)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: ran.append(sockets))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for host, token, warned in (("127.0.0.1", "", ""), ("0.0.0.0", "", "by everybody"), ("0.0.0.0", "x", "the token")):
        monkeypatch.setenv("DETECTOR_TOKEN", token)
        monkeypatch.setattr(sys, "argv", ["serve", "--host", host, "--port", "0"])
        command.main()
        printed = capsys.readouterr()
        assert printed.out.startswith(f"http://{host}:") and str(card_only) in printed.out
        assert (warned in printed.err) and bool(printed.err) == bool(warned)
    assert len(ran) == 3
