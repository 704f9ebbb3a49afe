import subprocess
import sys
from pathlib import Path

import pytest

from detector.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "detector", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_every_command_has_its_line(arguments):
    done = run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    for name, (_, purpose) in COMMANDS.items():
        assert f"  {name:12s} {purpose}\n" in done.stdout


def test_a_command_that_is_not_there_ends_in_one_line():
    done = run("convrt", "--help")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: 'convrt' is no command; choose from {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_calls_itself_as_it_was_called(name):
    done = run(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m detector {name} "), done.stderr


def test_help_loads_neither_tensorflow_nor_mlflow():
    code = f"""
import importlib, sys
from detector.__main__ import COMMANDS, main
sys.argv = ["detector"]
main()
for name in {[name for name in COMMANDS if name != "ui"]}:
    importlib.import_module(COMMANDS[name][0])
sys.exit(bool({{"tensorflow", "keras", "mlflow"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
