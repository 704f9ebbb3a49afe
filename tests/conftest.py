"""Fixtures of several test files, the order of the tests, and which of them are slow."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from detector.params import Params, load_params
from detector.prepare.ingest import ingest
from detector.prepare.splits import Entry

# A busy machine takes its time over an example; a test that hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
ROOT = Path(__file__).resolve().parent.parent
# These build, train or convert networks, drive a browser, or send a service thousands of requests.
SLOW_FIXTURES = {"network", "model_file"}
SLOW_FILES = {
    "test_backbones.py",
    "test_backends.py",
    "test_convert.py",
    "test_fuzz.py",
    "test_grad_cam.py",
    "test_keras_file.py",
    "test_loop.py",
    "test_network.py",
    "test_openapi.py",
    "test_openvino.py",
    "test_page.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests come first, so that the other workers are busy meanwhile; slow tests get their marker."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    for item in items:
        if item.path.name in SLOW_FILES or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class MemorySource:
    """A `detector.prepare.sources.Source` of files in memory, at "<split>/<class>/<name>"."""

    files: Mapping[str, bytes | OSError]
    attributes: Mapping[str, dict[str, str]] = field(default_factory=dict)
    name: str = "memory"
    classes: tuple[str, ...] = ("real", "fake")
    ignored: Mapping[str, int] = field(default_factory=dict)
    ungrouped: int = 0
    key: str = "data.path"

    @property
    def entries(self) -> list[Entry]:
        return [
            Entry(path, *path.split("/")[:2], group=path, attributes=self.attributes.get(path, {}))
            for path in sorted(self.files)
        ]

    def read(self, paths=None):
        return ((entry, self.files[entry.path]) for entry in self.entries if paths is None or entry.path in paths)


@pytest.fixture(scope="session")
def defaults() -> Params:
    """The shipped params.yaml."""
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    """photo(height, width, seed): soft blotches of colour, uint8 (height, width, 3); no two seeds alike."""

    def draw(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
        small = np.random.default_rng(seed).integers(30, 226, (4, 5, 3), np.uint8)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

    return draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(pixels or Image, format, **options of Pillow): the bytes of an image file."""

    def to_bytes(image: np.ndarray | Image.Image, format: str = "PNG", **options) -> bytes:
        file = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
        return file.getvalue()

    return to_bytes


@pytest.fixture(scope="session")
def memory_source() -> type[MemorySource]:
    return MemorySource


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, encode) -> Path:
    """Prepared data: 16 train, 6 validation, 7 test images; image i, in the manifest's order, is of one colour, i."""
    folder = tmp_path_factory.mktemp("prepared")
    places = sorted(
        f"{split}/{('real', 'fake')[number % 2]}/{number:02d}.png"
        for split, count in (("train", 16), ("validation", 6), ("test", 7))
        for number in range(count)
    )
    flat = {path: encode(np.full((30 + i, 50 - i, 3), i, np.uint8)) for i, path in enumerate(places)}
    ingest(MemorySource(flat), folder, max_side=1024, policy="drop", rng=np.random.default_rng(0))
    return folder


@pytest.fixture(scope="session")
def network(defaults):
    """The untrained Xception detector for images of 71 x 71, its smallest; not to be changed."""
    from detector.models.backend import keras
    from detector.models.network import build_network
    from detector.models.weights import InitialWeights

    keras.utils.clear_session()  # layers without a name of their own are numbered, as in a fresh process
    keras.utils.set_random_seed(5)
    return build_network(defaults.model.model_copy(update={"image_size": 71}), InitialWeights("random"), "float32")


@pytest.fixture(scope="session")
def model_file(network, tmp_path_factory) -> Path:
    """`network`, saved with the classes "camera" and "swap"."""
    from detector.models.file import ModelCard, save_model

    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_model(network, ModelCard(["camera", "swap"], 71, "xception", "random", "d1635700"), path)
    return path


@pytest.fixture(scope="session")
def schema(tmp_path_factory) -> Path:
    """An MLflow store with a schema and nothing in it, to be copied: to make one takes seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("schema") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
