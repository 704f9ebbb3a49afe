"""What docs/architecture.md states: who may import whom, what each stage depends on, how long a function may be."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks.cones import ROOT, STAGES, cone, imports, product, share
from detector.tracking import registry
from detector.training import checkpoint

DETECTOR = ROOT / "detector"
# From the ground up: a room uses its own and those on the floors below it.
FLOORS = [
    {"errors", "quiet"},
    {"images", "params", "metrics", "files", "paths"},
    {"augment", "data", "models", "tracking"},
    {"prepare", "synthetic", "training", "evaluation"},
    {"inference", "reporting"},
    {"experiments", "serve"},
    {"stages", "__main__"},
]
# Which room may use one that is no floor below it, and why.
BESIDE = {
    ("params", "models"): "the table of backbones, light on purpose, says which names and sizes a parameter may have",
}


def room(file: Path) -> str:
    first = file.relative_to(ROOT).parts
    return first[0] if first[0] == "stages" else Path(first[1]).stem


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_its_floor():
    rooms = {room(file) for file in product() if file.name != "__init__.py" or file.parent != DETECTOR}
    assert rooms == set.union(*FLOORS)


def test_the_document_shows_these_floors():
    rows = re.findall(r"^\| (\d) \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    drawn = {int(number): set(re.findall(r"`(?:detector/)?(\w+)(?:/|\.py)`", rooms)) for number, rooms in rows}
    assert drawn == dict(enumerate(FLOORS, start=1))


def test_imports_go_down():
    up = []
    for file in product():
        for other in (other for other in imports(file) if other.stat().st_size):
            a, b = room(file), room(other)
            if a != b and floor(b) >= floor(a) and (a, b) not in BESIDE:
                up.append(f"{file.relative_to(ROOT)} imports {other.relative_to(ROOT)}")
    assert sorted(up) == []


def test_no_module_imports_itself_in_a_circle():
    below = {file: {other for other in imports(file) if other.stat().st_size} for file in product()}
    while below:
        free = [file for file, others in below.items() if not others & below.keys() - {file}]
        assert free, f"a circle among {sorted(str(file.relative_to(ROOT)) for file in below)}"
        for file in free:
            del below[file]


def test_mlflow_is_imported_by_tracking_and_the_logged_model_alone():
    users = set()
    for file in product():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [part for part in tree.body if not (isinstance(part, ast.If) and "TYPE_CHECK" in ast.dump(part))]
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "mlflow" for name in names):
                users.add(str(file.relative_to(ROOT)))
    assert {user for user in users if not user.startswith("detector/tracking/")} == {"detector/inference/pyfunc.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_are_the_modules_that_it_imports(stage):
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = [dep for dep in deps if dep.startswith(("detector", "stages"))]
    needed = cone(ROOT / "stages" / f"{stage}.py")
    listed = {file for file in product() for dep in code if file == ROOT / dep or ROOT / dep in file.parents}
    missing = needed - listed
    assert sorted(str(file.relative_to(ROOT)) for file in missing) == [], f"add to the deps of {stage} in dvc.yaml"
    logged = {DETECTOR / "inference" / "pyfunc.py"}  # with the model; nothing imports it
    stray = {file for file in listed - needed - logged if file.stat().st_size}
    assert sorted(str(file.relative_to(ROOT)) for file in stray) == [], f"take off the deps of {stage} in dvc.yaml"


GROUND = {"errors.py", "files.py", "metrics.py", "params.py", "paths.py", "quiet.py"}  # these change no number


def code_of(start: str, without: set[str]) -> list[str]:
    """The modules that `start` needs, relative to the package, but for some."""
    needed = {file.relative_to(DETECTOR).as_posix() for file in cone(ROOT / start) if DETECTOR in file.parents}
    return sorted(needed - GROUND - without)


def test_a_checkpoint_is_good_for_the_code_that_trains():
    listed = [DETECTOR / name for name in checkpoint.CODE]
    files = [file for place in listed for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    named = sorted(file.relative_to(DETECTOR).as_posix() for file in files if file.stat().st_size)
    others = {"models/file.py", "tracking/runs.py", "tracking/store.py"}
    assert named == code_of("stages/train.py", others)


def test_a_logged_model_is_known_by_the_code_that_scores():
    # It scores images as they are, and draws no heat map.
    others = {"models/grad_cam.py", *code_of("detector/models/faces/__init__.py", set())} - set(registry.CODE)
    assert list(registry.CODE) == code_of("detector/inference/pyfunc.py", others)


def test_training_depends_on_a_quarter_of_the_code_at_most():
    assert share("train") <= 0.25


@pytest.mark.parametrize("name", ["reporting", "evaluation", "inference", "synthetic", "prepare", "serve", "metrics"])
def test_nothing_of_these_rooms_retrains_a_model(name):
    assert [file for file in cone(ROOT / "stages" / "train.py") if room(file) == name] == []


@pytest.mark.parametrize(
    "module", ["stages.plot", "detector.reporting.figures", "detector.prepare.sources", "detector.params"]
)
def test_light_modules_do_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit(bool({{'tensorflow', 'keras'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


LONGEST = 60  # lines of a function with its docstring


def test_functions_are_short():
    longer = {
        (file.relative_to(ROOT).as_posix(), node.name)
        for file in product()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= LONGEST
    }
    assert longer == set(), "split these, or move parts of them out"


def test_a_wheel_holds_the_whole_package_and_its_command():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["detector"]
    data = {file for file in DETECTOR.rglob("*.*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert data == {file for pattern in patterns for file in DETECTOR.glob(pattern)}
    assert [file for file in DETECTOR.rglob("*.py") if not (file.parent / "__init__.py").exists()] == []
    module, _, function = settings["project"]["scripts"]["deepfake-detector"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_make_help_lists_the_targets():
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("repro", "recipe", "test", "check", "ui", "lint"):
        assert re.search(rf"^  make {target}\s+\w", output, re.M)


def is_there(place: Path) -> bool:
    """A file or a folder; a package may still be a module."""
    return place.exists() or place.with_suffix(".py").exists()


def test_the_documents_name_files_that_exist():
    """Links between the documents, and the paths in backticks that begin at the project's root."""
    missing = []
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        links = [page.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)]
        paths = re.findall(r"`((?:detector|tests|stages|benchmarks|recipes|docs)/[\w./-]*)`", text)
        places = [*links, *(ROOT / path for path in paths)]
        missing += [f"{page.name}: {place}" for place in places if not is_there(place)]
    assert missing == []
