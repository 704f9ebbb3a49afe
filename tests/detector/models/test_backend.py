"""What is settled before TensorFlow is imported, looked at in processes of their own."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from detector.models import backend

ROOT = Path(__file__).resolve().parents[3]
GLIBC = platform.libc_ver()[0] == "glibc"


def run(program: str, *, without: tuple[str, ...] = (), **environment: str) -> dict:
    """What `program` prints, a line of JSON, in the environment of the tests with these changes."""
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# TensorFlow and Keras are replaced by a finder that notes what the environment says when they are asked for first.
AT_IMPORT = """
import json, os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("keras", "tensorflow"):
            print(json.dumps({"module": name, "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS")}))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
import stages.train
"""


def test_onednn_is_on_before_anything_of_tensorflow_is_imported():
    assert run(AT_IMPORT, without=("TF_ENABLE_ONEDNN_OPTS",))["onednn"] == "1"


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_users_own_choice_of_onednn_stays(value):
    assert run(AT_IMPORT, TF_ENABLE_ONEDNN_OPTS=value)["onednn"] == value


IN_USE = """
import json
import detector.models.backend
from tensorflow.python.util import _pywrap_util_port
print(json.dumps({"onednn": bool(_pywrap_util_port.IsMklEnabled())}))
"""


def test_it_is_the_variable_that_tensorflow_reads():
    assert not run(IN_USE, TF_ENABLE_ONEDNN_OPTS="0")["onednn"]


# Large blocks are taken, written and freed, as by one training step after another; no Keras, which takes seconds.
FAULTS = """
import json, resource, sys, types
sys.modules["keras"] = types.SimpleNamespace(backend=types.SimpleNamespace(backend=lambda: "none"))
import detector.models.backend
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [b"x" * (k * 2**20) for k in (1, 8, 40, 64)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps({"faults": faults()}))
"""
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


@pytest.mark.skipif(not GLIBC, reason="options of glibc")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    pages = 10 * 113 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert run(FAULTS, without=MALLOC)["faults"] < 0.05 * pages
    own = dict(zip(MALLOC, ("65536", "131072"), strict=True))
    assert run(FAULTS, **own)["faults"] > 0.5 * pages  # what is set in the environment stays


def test_a_c_library_without_such_options_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    backend._keep_memory()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_on_another_system_no_c_library_is_looked_at(system, monkeypatch):
    def refuse(name):
        raise TypeError("there is no C library of that name")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    backend._keep_memory()
