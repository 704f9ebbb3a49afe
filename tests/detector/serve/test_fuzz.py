"""Hostile files: always an answer, never a status 500. benchmarks/fuzz.py sends more of them and watches the memory."""

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from detector.serve.problems import Problem
from detector.serve.service import check

FILES = 300


def test_mutated_images_get_a_verdict_or_an_error_of_their_own(live):
    outcomes, _ = fuzz.run(lambda file: live.post("/v1/predict?detect=false", file), FILES)
    assert sum(outcomes.values()) == FILES
    assert min(outcomes["faces"], outcomes["not_an_image"], outcomes["broken_image"]) > 10  # all paths were taken


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0"])
)
def test_the_look_at_a_header_ends_in_nothing_but_a_problem(data, magic):
    try:
        check(magic + data)
    except Problem as problem:
        assert problem.status == 422
