"""Who is drawn and when: what a person keeps from photo to photo, and what changes. Both at random."""

from dataclasses import dataclass
from math import cos, sin

import numpy as np

from detector.synthetic.portrait.canvas import mix
from detector.synthetic.portrait.scenery import PLACES


def _palette(colours: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(bytes.fromhex(colour)) for colour in colours.split())


SKINS = _palette("fcdec6 f6cfb0 ebbc96 dea87e c68c62 a8704c 8a583c 6c442e 523426")
HAIRS = _palette("181312 32221a 583a26 7a3c20 b0562a 926c40 d4ae70 e8d6b2")
DYES = _palette("367882 ce608c 5c4ea0 b02830")
IRISES = _palette("422818 5c3a20 7a5a2e 566e42 527a94 6e828c 342218")
CLOTHS = _palette("283454 8c2830 e2ded4 3a3e42 426858 d6a43c 5c84b0 c46854 6e547c 1e2024 a8b0a0 e8bebe 544236")

# Chances: of a style for a masculine and for a feminine person, of the rest for anyone.
STYLES = {
    **{"bald": (6, 0.3), "fringe of a bald head": (6, 0), "buzz": (9, 1), "crop": (13, 2), "side part": (15, 2)},
    **{"quiff": (10, 1), "spikes": (5, 0.5), "curls": (8, 8), "afro": (6, 7), "bob": (1, 13), "long": (3, 15)},
    **{"waves": (2, 15), "bun": (2, 9), "ponytail": (1, 8), "braids": (0.3, 8), "beanie": (6, 5), "headscarf": (0, 7)},
}
BEARDS = {"none": 44, "stubble": 18, "moustache": 8, "goatee": 9, "short": 13, "long": 8}
GLASSES = {"none": 66, "round": 11, "square": 12, "cat": 6, "sun": 3}
EARRINGS = {"none": 45, "stud": 25, "hoop": 17, "drop": 13}
CLOTHES = {"tee": 24, "v-neck": 14, "shirt": 18, "suit": 13, "turtleneck": 12, "hoodie": 12, "dress": 7}
PATTERNS = {"plain": 3, "stripes": 1, "check": 1, "dots": 1}


@dataclass(frozen=True)
class Identity:
    """What a person keeps. Colours are RGB, 0..1; lengths are in face units (from the crown to the chin: 2)."""

    feminine: bool
    age: float  # 0 young .. 1 old
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    width: float  # half the head's, at the cheekbones
    jaw: float
    chin: float
    eye_gap: float  # from the middle to an eye's centre
    eye_size: float
    eye_open: float
    eye_tilt: float
    brow_height: float
    brow_weight: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_fullness: float
    ear: float
    style: str
    parting: float  # -1 left .. 1 right
    volume: float
    fringe: float  # 0 off the forehead .. 1 far down
    beard: str
    glasses: str
    earrings: str
    lashes: bool
    marks: np.ndarray  # (n, 3): x, y and radius of freckles and moles
    accessory: np.ndarray  # colour of glasses, scarf or hat
    seed: int  # of the hair's strands and the skin's texture


@dataclass(frozen=True)
class Scene:
    """What changes from photo to photo. Angles are in radians, colours RGB (a light's may exceed 1)."""

    yaw: float
    pitch: float
    roll: float
    zoom: float
    shift: tuple[float, float]  # of the head from its usual place, as a part of the picture's side
    smile: float  # -0.25 glum .. 1 beaming
    mouth_open: float
    gaze: tuple[float, float]
    squint: float
    brow_raise: float
    key: np.ndarray  # unit vector towards the main light: x right, y down, z to the viewer
    key_colour: np.ndarray
    sky: np.ndarray  # light from above ...
    ground: np.ndarray  # ... and from below
    rim: float  # strength of a light from behind
    clothes: str
    cloth: np.ndarray
    cloth2: np.ndarray
    pattern: str
    place: str
    defocus: float  # of the background, face units
    seed: int  # of the details


def draw_identity(rng: np.random.Generator) -> Identity:
    """A person at random."""
    feminine = bool(rng.random() < 0.5)
    age, tone = float(rng.beta(1.3, 1.8)), float(rng.random())
    skin = np.clip(_along(SKINS, tone) * rng.normal(1, 0.025, 3), 0, 1).astype(np.float32)
    style = _pick(rng, {style: odds[feminine] for style, odds in STYLES.items()})
    if (style == "afro" and tone < 0.5) or ("bald" in style and age < 0.3):
        style = "curls"
    red = rng.uniform(0.3, 0.7) if feminine and rng.random() < 0.4 else rng.uniform(0, 0.15)  # lipstick
    return Identity(
        feminine=feminine,
        age=age,
        skin=skin,
        hair=_hair_colour(rng, tone, age, "bald" not in style),
        iris=_along(IRISES, rng.uniform(0, 0.25 if tone > 0.55 else 1)),
        lips=mix(skin * (0.86, 0.60, 0.58), (0.70, 0.14, 0.20), red),
        width=rng.uniform(0.68, 0.79),
        jaw=rng.uniform(0.45, 0.62) - 0.05 * feminine,
        chin=rng.uniform(0.17, 0.31) - 0.03 * feminine,
        eye_gap=rng.uniform(0.29, 0.36),
        eye_size=rng.uniform(0.155, 0.195) + 0.012 * feminine,
        eye_open=rng.uniform(0.30, 0.50) + 0.05 * feminine - 0.06 * age,
        eye_tilt=rng.normal(0.04, 0.09),
        brow_height=rng.uniform(0.20, 0.28) + 0.02 * feminine,
        brow_weight=rng.uniform(0.03, 0.075) - 0.014 * feminine,
        brow_arch=rng.uniform(0.0, 0.07),
        nose_length=rng.uniform(0.34, 0.46),
        nose_width=rng.uniform(0.11, 0.19),
        mouth_height=rng.uniform(0.61, 0.68),
        mouth_width=rng.uniform(0.20, 0.29),
        lip_fullness=rng.uniform(0.045, 0.095) + 0.015 * feminine,
        ear=rng.uniform(0.85, 1.2),
        style=style,
        parting=rng.choice((-1, 1)) * rng.uniform(0.2, 1),
        volume=rng.uniform(0.7, 1.3),
        fringe=float(rng.random()),
        beard="none" if feminine or age < 0.12 else _pick(rng, BEARDS),
        glasses=_pick(rng, GLASSES),
        earrings=_pick(rng, EARRINGS) if feminine or rng.random() < 0.15 else "none",
        lashes=feminine and rng.random() < 0.8,
        marks=_marks(rng, tone, age),
        accessory=_cloth(rng),
        seed=int(rng.integers(2**31)),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """An occasion to be photographed at random."""
    azimuth, elevation = rng.choice((-1, 1)) * rng.uniform(0.15, 1.15), rng.uniform(0.25, 0.95)
    key = (sin(azimuth) * cos(elevation), -sin(elevation), cos(azimuth) * cos(elevation))
    warm, cool, ambient = rng.normal(0, 0.07), rng.normal(0.02, 0.05), rng.uniform(0.22, 0.5)
    key_colour = np.array([1 + warm, 1, 1 - warm]) * rng.uniform(0.75, 1.15)
    sky = np.array([1 - cool, 1, 1 + cool]) * ambient
    ground = np.array([1.08, 1, 0.92]) * ambient * rng.uniform(0.5, 0.9)
    return Scene(
        yaw=np.clip(rng.normal(0, 0.2), -0.42, 0.42),
        pitch=np.clip(rng.normal(0, 0.09), -0.18, 0.18),
        roll=np.clip(rng.normal(0, 0.1), -0.25, 0.25),
        zoom=rng.uniform(0.9, 1.12),
        shift=(rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)),
        smile=np.clip(rng.normal(0.5, 0.38), -0.25, 1),
        mouth_open=max(0.0, rng.normal(0.1, 0.5)),
        gaze=(rng.normal(0, 0.22), rng.normal(0, 0.12)),
        squint=abs(rng.normal(0, 0.12)),
        brow_raise=rng.normal(0, 0.03),
        key=np.array(key, np.float32),
        key_colour=key_colour.astype(np.float32),
        sky=sky.astype(np.float32),
        ground=ground.astype(np.float32),
        rim=max(0.0, rng.normal(0.1, 0.35)),
        clothes=_pick(rng, CLOTHES),
        cloth=_cloth(rng),
        cloth2=_cloth(rng),
        pattern=_pick(rng, PATTERNS),
        place=str(rng.choice(list(PLACES))),
        defocus=rng.uniform(0.02, 0.11),
        seed=int(rng.integers(2**31)),
    )


def _pick(rng: np.random.Generator, chances: dict[str, float]) -> str:
    edges = np.cumsum(list(chances.values()))
    return list(chances)[int(np.searchsorted(edges, rng.random() * edges[-1], "right"))]


def _along(palette: tuple, t: float) -> np.ndarray:
    """The colour at `t` in 0..1 along a palette of 8-bit colours, as RGB 0..1."""
    at = t * (len(palette) - 1)
    i = min(int(at), len(palette) - 2)
    return mix(palette[i], palette[i + 1], at - i) / 255


def _cloth(rng: np.random.Generator) -> np.ndarray:
    return np.array(CLOTHS[rng.integers(len(CLOTHS))], np.float32) / 255


def _hair_colour(rng: np.random.Generator, tone: float, age: float, dyed: bool) -> np.ndarray:
    """Darker with darker skin, mostly; greyer with age."""
    hair = np.array(HAIRS[min(int(rng.exponential(0.6 + 4.5 * (1 - tone) ** 2)), len(HAIRS) - 1)])
    if dyed and rng.random() < 0.05:
        hair = np.array(DYES[rng.integers(len(DYES))])
    grey = np.clip((age - 0.62) * 3 + rng.normal(0, 0.2), 0, 1) if age > 0.5 else 0
    return mix(hair / 255 * rng.uniform(0.85, 1.15), np.array((1, 0.99, 0.97)) * rng.uniform(0.5, 0.85), grey)


def _marks(rng: np.random.Generator, tone: float, age: float) -> np.ndarray:
    """Freckles about the nose, moles anywhere."""
    count = rng.poisson(26) if tone < 0.4 and rng.random() < 0.25 else 0
    freckles = rng.normal((0, 0.2), (0.3, 0.12), (count, 2))
    moles = rng.uniform((-0.55, -0.5), (0.55, 0.85), (rng.poisson(0.7 + age), 2))
    radii = np.r_[rng.uniform(0.009, 0.016, len(freckles)), rng.uniform(0.014, 0.026, len(moles))]
    return np.column_stack([np.vstack([freckles, moles]), radii]).astype(np.float32)
