from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.synthetic.portrait import render, sitter
from detector.synthetic.portrait.scenery import PLACES
from detector.synthetic.portrait.sitter import draw_identity, draw_scene

SIZE = 48


def person(seed=1, **traits):
    """Somebody plain, with the traits given."""
    plain = {"feminine": False, "age": 0.4, "style": "crop", "beard": "none", "glasses": "none", "earrings": "none"}
    return replace(draw_identity(np.random.default_rng(seed)), **{**plain, **traits})


def scene(seed=1, **circumstances):
    """Seen straight from the front, against a wall."""
    plain = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, "clothes": "tee", "pattern": "plain", "place": "wall"}
    return replace(draw_scene(np.random.default_rng(seed)), **{**plain, **circumstances})


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from((32, 49)))
def test_whoever_sits_whenever_is_drawn(seed, size):
    rng = np.random.default_rng(seed)
    drawing = render(draw_identity(rng), draw_scene(rng), size)
    assert drawing.pixels.shape == (size, size, 3) and drawing.pixels.dtype == np.float32
    assert drawing.face.shape == (size, size) and drawing.face.dtype == np.float32
    for image in (drawing.pixels, drawing.face):
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert drawing.pixels.std() > 0.03
    assert 0.04 < drawing.face.mean() < 0.4
    left, right, nose, *_, chin, brow = drawing.landmarks
    assert left[0] < right[0] and brow[1] < nose[1] < chin[1]
    assert drawing.face[tuple(np.int32(nose[::-1]))] > 0.9


def test_the_same_person_at_the_same_scene_gives_the_same_picture():
    assert np.array_equal(render(person(), scene(), SIZE).pixels, render(person(), scene(), SIZE).pixels)


def test_a_larger_picture_shows_the_same():
    small, large = (render(person(), scene(), size) for size in (SIZE, 2 * SIZE))
    shrunk = cv2.resize(large.pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - small.pixels).mean() < 0.04
    assert np.allclose(large.landmarks, 2 * small.landmarks, atol=0.01)


TRAITS = [("style", value) for value in sitter.STYLES if value != "crop"]
TRAITS += [
    (name, value)
    for name in ("beard", "glasses", "earrings")
    for value in getattr(sitter, {"beard": "BEARDS"}.get(name, name.upper()))
    if value != "none"
]


@pytest.mark.parametrize(("trait", "value"), TRAITS)
def test_every_trait_shows(trait, value):
    ears_free = {"style": "buzz"} if trait == "earrings" else {}
    plain, styled = person(**ears_free), person(**{**ears_free, trait: value})
    difference = np.abs(render(styled, scene(), SIZE).pixels - render(plain, scene(), SIZE).pixels)
    assert (difference > 0.03).sum() > 10


CIRCUMSTANCES = [("clothes", value) for value in sitter.CLOTHES if value != "tee"]
CIRCUMSTANCES += [("pattern", value) for value in sitter.PATTERNS if value != "plain"]
CIRCUMSTANCES += [("place", value) for value in PLACES if value != "wall"]


@pytest.mark.parametrize(("name", "value"), CIRCUMSTANCES)
def test_every_circumstance_shows_and_leaves_the_face_alone(name, value):
    cloths = {"cloth": np.float32((0.8, 0.2, 0.2)), "cloth2": np.float32((0.1, 0.2, 0.7))}
    plain, other = (render(person(), scene(**cloths, **change), SIZE) for change in ({}, {name: value}))
    difference = np.abs(other.pixels - plain.pixels).max(2)
    assert (difference > 0.03).sum() > 10
    face = cv2.erode(plain.face, np.ones((3, 3)))
    assert difference[face == 1].mean() < 0.03


def test_the_side_that_faces_the_light_is_the_brighter():
    def balance(x):
        key = np.float32((x, -0.3, 0.5)) / np.float32(np.hypot(np.hypot(x, 0.3), 0.5))
        drawing = render(person(), scene(key=key, rim=0.0), SIZE)
        column = np.arange(SIZE)[None] - drawing.landmarks[2, 0]
        light = drawing.pixels.mean(2)
        right, left = ((drawing.face == 1) & side for side in (column > 0, column < 0))
        return light[right].mean() - light[left].mean()

    assert balance(0.8) > 0.05 and balance(-0.8) < -0.05


def test_a_turned_head_leads_with_its_nose():
    def lead(yaw):
        left, right, nose, *_ = render(person(), scene(yaw=yaw), SIZE).landmarks
        return nose[0] - (left[0] + right[0]) / 2

    assert lead(-0.3) < -0.8 < lead(0.0) < 0.8 < lead(0.3)


def test_people_differ_and_photos_of_one_differ():
    rng = np.random.default_rng(0)
    people = [draw_identity(rng) for _ in range(40)]
    assert len({someone.style for someone in people}) > 8
    assert {someone.feminine for someone in people} == {True, False}
    assert np.ptp([someone.skin.mean() for someone in people]) > 0.4
    photos = [render(people[0], draw_scene(rng), SIZE).pixels for _ in range(3)]
    assert all(np.abs(a - b).mean() > 0.02 for a, b in pairwise(photos))


def test_children_of_the_dice_are_not_bearded_women():
    rng = np.random.default_rng(0)
    for someone in (draw_identity(rng) for _ in range(200)):
        assert someone.beard == "none" or not someone.feminine
        assert someone.age >= 0.3 or "bald" not in someone.style
