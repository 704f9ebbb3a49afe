import os
import sys

import pytest

from detector.quiet import quiet_native_stderr


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_native_output_is_held_back(capfd):
    with quiet_native_stderr():
        os.write(2, b"start-up chatter\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_it_is_shown_when_the_block_fails(capfd):
    with pytest.raises(KeyError), quiet_native_stderr():
        os.write(2, b"why it failed\n")
        raise KeyError
    assert capfd.readouterr().err == "why it failed\n"


def test_a_keyboard_interrupt_counts_as_failing(capfd):
    with pytest.raises(KeyboardInterrupt), quiet_native_stderr():
        os.write(2, b"how far it got\n")
        raise KeyboardInterrupt
    assert "how far it got" in capfd.readouterr().err


def test_what_python_wrote_before_comes_out_before(capfd):
    print("before", file=sys.stderr, end="")
    with quiet_native_stderr():
        pass
    assert capfd.readouterr().err == "before"


def test_standard_output_is_left_alone(capfd):
    with quiet_native_stderr():
        os.write(1, b"result\n")
    assert capfd.readouterr().out == "result\n"


def test_blocks_can_be_nested_and_leave_no_open_file(capfd):
    before = open_files()
    for _ in range(20):
        with quiet_native_stderr(), quiet_native_stderr():
            os.write(2, b"chatter")
    assert open_files() == before
    assert capfd.readouterr().err == ""


def test_much_output_does_not_block(capfd):
    with pytest.raises(ValueError), quiet_native_stderr():
        for _ in range(64):
            os.write(2, b"x" * 65_536)
        raise ValueError
    assert len(capfd.readouterr().err) == 64 * 65_536
