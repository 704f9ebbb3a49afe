"""Named parameter sets: recipes/NAME.yaml holds what it says of params.yaml; one command runs the pipeline with it.

    python -m detector recipe                                                  lists the recipes
    python -m detector recipe published --data faces.zip --set train.epochs=3 seed=2

The run is a DVC experiment in a copy of the project (`dvc exp run --temp`): params.yaml is never written, and the
project may be edited meanwhile. What it gave is brought into the workspace when it is whole.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from detector.errors import UserError
from detector.models.weights import find_weights
from detector.params import Params, check_params, dotted, read_yaml
from detector.paths import EVALUATION, MODEL, REPORT, existing_path, project_root

RESULTS = ("dvc.lock", "metrics")  # what git tracks of a run; the rest is in DVC's cache


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m detector recipe",
        description="Run the pipeline with a named set of parameters. Without a name: list them.",
    )
    parser.add_argument("name", nargs="?", help="a file of recipes/, without .yaml")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        help="a folder or an archive, or several, relative to the project's root; or kaggle, or sample (drawn)",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as dvc exp run -S takes it"
    )
    options = parser.parse_args()
    if options.name is None and not (options.data or options.set):
        print(listing())
    elif options.name is None:
        raise UserError(f"name a recipe: {', '.join(names())}")
    else:
        run(options.name, resolve(options.name, options.data, options.set))


def folder() -> Path:
    return project_root() / "recipes"


def names() -> list[str]:
    """The recipes that there are."""
    return sorted(file.stem for file in folder().glob("*.yaml"))


def listing() -> str:
    """One line a recipe: its name, and the first line of its file."""
    first = {name: (folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0] for name in names()}
    width = max(map(len, first), default=0)
    return "\n".join(f"{name:{width}s}  {line.lstrip('# ')}" for name, line in first.items())


def read(name: str) -> dict[str, Any]:
    """What the recipe says: dotted keys and values.

    Raises:
        UserError: there is no such recipe, or its file is no mapping.
    """
    if name not in names():
        raise UserError(f"no recipe is called {name}; there are {', '.join(names())}")
    raw = read_yaml(folder() / f"{name}.yaml")
    if not isinstance(raw, Mapping):
        raise UserError(f"recipes/{name}.yaml: must hold sections and keys as params.yaml does, got {raw!r}")
    return dotted(raw)


def resolve(name: str, data: Sequence[str] = (), settings: Sequence[str] = ()) -> dict[str, Any]:
    """What a run of the recipe changes in params.yaml: dotted keys and values, checked before any work.

    Args:
        data: kaggle, sample, or folders and archives, in place of the data that params.yaml names.
        settings: key=value, which have the last word.

    Raises:
        UserError: a key or value is wrong, a file is not there, or the recipe needs data and none is named.
    """
    raw = read_yaml(project_root() / "params.yaml")
    params, changes = check_params(raw, "params.yaml"), {}
    given = dict(setting(text) for text in settings)
    for origin, part in ((f"recipes/{name}.yaml", read(name)), ("--data", of_data(data)), ("--set", given)):
        changes |= part
        if part:
            params = check_params(changed(raw, changes), origin)
    if params.data.source == "sample" and "data.source" not in changes:
        raise UserError(f"recipe {name} needs photographs: name a folder, an archive or kaggle by --data (make: DATA=)")
    _look_for_files(params, "--data" if data else "data.path")
    return changes


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters with other values at dotted keys."""
    nested = deepcopy(dict(raw))
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = value
    return nested


def setting(text: str) -> tuple[str, Any]:
    """Key and value of key=value in the grammar of `dvc exp run -S`, which is Hydra's.

    Raises:
        UserError: it is not of this form.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # a third of a second
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        override = None
    if override is None or override.type.name != "CHANGE" or override.is_sweep_override():
        raise UserError(f"--set: {text!r} is not key=value with one value, such as train.epochs=3")
    return override.key_or_group, _plain(override.value())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)  # of a quoted string


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """The arguments of `dvc exp run` that make these changes."""
    arguments = []
    for key, value in changes.items():
        if isinstance(value, Mapping):
            arguments += ["-S", f"{key}=null"]  # or the former mapping's keys stay beside the new ones
        arguments += ["-S", f"{key}={_hydra(value)}"]
    return arguments


def _hydra(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if isinstance(value, str):
        # A backslash is doubled before a quotation mark alone, the closing one included.
        return "'" + re.sub(r"(\\*)'", r"\1\1\'", value) + re.search(r"\\*$", value)[0] + "'"
    return json.dumps(value)


def of_data(data: Sequence[str]) -> dict[str, Any]:
    """The keys that say where the images come from; none where `data` is empty."""
    if not data:
        return {}
    # A manifest and weights of sources belong to the data that they were written for.
    other = {"data.manifest": None, "train.source_weights": None}
    if list(data) in (["kaggle"], ["sample"]):
        return {"data.source": data[0], "data.path": None, **other}
    return {"data.source": "folder", "data.path": data[0] if len(data) == 1 else list(data), **other}


def _look_for_files(params: Params, data_key: str) -> None:
    """Miss now what a stage would miss after hours; ImageNet weights that are demanded are downloaded."""
    paths = params.data.path or []
    for path in [paths] if isinstance(paths, str) else paths:
        existing_path(data_key, path)
    if params.data.manifest:
        existing_path("data.manifest", params.data.manifest)
    for path in params.evaluate.extra_sets:
        existing_path("evaluate.extra_sets", path)
    if params.model.weights != "auto":
        find_weights(params.model.weights, params.model.backbone)


def run(name: str, changes: Mapping[str, Any]) -> None:
    """Run the pipeline as an experiment named like the recipe, and put what it gave into the workspace.

    Raises:
        UserError: it failed; the workspace is as it was.
    """
    root, experiment = project_root(), _free_name(name)
    environment = os.environ | _identity()
    dvc = [sys.executable, "-m", "dvc"]
    process = subprocess.Popen(
        [*dvc, "exp", "run", "--temp", "--name", experiment, *overrides(changes)], cwd=root, env=environment
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:  # DVC has got it, too, and tidies up
        process.wait()
        raise
    if code:
        raise UserError(f"recipe {name} was not run to its end, for the reason above; the workspace is as it was")
    restore = ["git", "restore", f"--source={_experiments()[experiment]}", "--worktree", "--", *RESULTS]
    for command in (restore, [*dvc, "checkout", "--force", "--quiet"]):
        if subprocess.run(command, cwd=root).returncode:
            raise UserError(f"the results of {experiment} are not in the workspace; run `dvc exp apply {experiment}`")
    print(
        f"recipe {name} is experiment {experiment}; its results are in the workspace: {MODEL}, {EVALUATION}, {REPORT}\n"
        f"params.yaml is as it was: `dvc repro` goes back to it, `dvc exp apply {experiment}` makes it the recipe's"
    )


def _free_name(name: str) -> str:
    """The recipe's own or, where an experiment has that already, with a number behind it."""
    taken = _experiments()
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return free


def _experiments() -> dict[str, str]:
    """Name -> reference of each DVC experiment of this clone, whatever commit it starts from."""
    listed = ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]
    done = subprocess.run(listed, cwd=project_root(), capture_output=True, text=True)
    return {reference.rpartition("/")[2]: reference for reference in done.stdout.split()}


def _identity() -> dict[str, str]:
    """A name for git where it has none: DVC keeps experiments as commits, and fails without, now or at the end."""
    done = subprocess.run(["git", "config", "user.email"], cwd=project_root(), capture_output=True)
    if done.returncode == 0:
        return {}
    named = {f"GIT_{who}_{what}": "recipe" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {key: value for key, value in named.items() if key not in os.environ}
