"""The ablation: its commands change what they say, and its table is chosen by validation alone."""

import argparse
import io
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.recipes import __main__ as recipes
from detector.errors import UserError
from detector.params import Params, flatten

ROWS = yaml.safe_load((recipes.HERE / "recipes.yaml").read_text())


def options(**changes) -> argparse.Namespace:
    values = {"data": ["a b.zip", "it's"], "extra": ["c"], "seeds": [1], "rows": None, "common": [], "run": False}
    return argparse.Namespace(**values | {"prefix": ""} | changes)


def settings(command: list[str]) -> dict[str, str]:
    """What a `dvc exp run` sets."""
    return dict(command[at + 1].split("=", 1) for at, word in enumerate(command) if word == "-S")


@pytest.mark.parametrize("row", ROWS["rows"])
def test_every_row_is_made_of_parameters_that_exist(defaults, row):
    raw = defaults.model_dump()
    for key, value in {"data.path": "faces.zip", **ROWS["base"], **ROWS["rows"][row]}.items():
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        assert name in place, key
        place[name] = value
    given = flatten(Params.model_validate(raw))
    assert all(given[key] == value for key, value in ROWS["rows"][row].items())


def test_a_row_changes_the_base_and_nothing_else():
    base, row = recipes.commands(options(rows=["published", "self-blend"], seeds=[7]))
    assert "published-7" in base and "self-blend-7" in row
    changed = {key for key, value in settings(row).items() if settings(base).get(key) != value}
    assert changed == set(ROWS["rows"]["self-blend"])


def test_the_base_pins_every_parameter_of_training_so_that_params_yaml_decides_nothing(defaults):
    given_with_the_command = {"model.weights", "model.image_size", "train.epochs", "train.source_weights"}
    of_the_machine = {"train.precision"}
    sections = ("model.", "augment.", "train.")
    training = {key for key in flatten(defaults) if key.startswith(sections)}
    assert training - given_with_the_command - of_the_machine <= set(ROWS["base"])


def test_one_experiment_a_row_and_seed_queued_or_run_beside_the_workspace():
    queued = recipes.commands(options(seeds=[1, 2], prefix="p-", common=["train.epochs=2"]))
    names = [command[command.index("-n") + 1] for command in queued]
    assert len(set(names)) == len(names) == 2 * len(ROWS["rows"]) and all(name.startswith("p-") for name in names)
    assert all("--queue" in command and command[-1] == "train.epochs=2" for command in queued)
    assert "--temp" in recipes.commands(options(run=True))[0]


def test_paths_survive_the_grammar_of_overrides():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = {"data.path": ["a b.zip", "it's", "[x],y"], "evaluate.extra_sets": ["c"]}
    (command,) = recipes.commands(options(rows=["published"], data=given["data.path"]))
    for key, value in given.items():
        parsed = OverridesParser.create().parse_override(f"{key}={settings(command)[key]}").value()
        assert [str(getattr(item, "text", item)) for item in parsed] == value


def test_an_unknown_row_is_named():
    with pytest.raises(UserError, match="--rows: typo is none of published, "):
        recipes.commands(options(rows=["typo"]))


def test_the_interval_is_students_and_one_seed_has_none():
    found = recipes._mean([0.7, 0.8, 0.9])
    assert found["mean"] == pytest.approx(0.8)
    assert found["high"] - 0.8 == pytest.approx(4.302653 * 0.1 / np.sqrt(3))  # t of 2 degrees of freedom, 97.5 %
    assert 0.8 - found["low"] == pytest.approx(found["high"] - 0.8)
    assert recipes._mean([0.7]) == {"mean": 0.7, "low": None, "high": None}


class Store:
    """MLflow runs with the files of an evaluation, in place of `detector.tracking.runs.runs`."""

    def __init__(self, **losses: float):
        self.losses = {name.replace("_", "-"): loss for name, loss in losses.items()}
        self.others: dict[str, dict[str, str]] = {}  # run -> the parameters in which it differs
        self.sources = True

    def all_runs(self):
        common = {"data.path": "['/x/one', '/x/two']", "evaluate.extra_sets.other": "", "model.image_size": "128"}
        common |= {"train.epochs": "3", "model.weights": "/x/w.weights.h5"}
        common |= {"train.source_weights.one": "0.25", "train.source_weights.two": "0.75", "data.manifest": "None"}

        def run(name: str) -> SimpleNamespace:
            row = ROWS["rows"].get(name.rpartition("-")[0], {})
            made = {key: str(value) for key, value in {**ROWS["base"], **row}.items()}
            return SimpleNamespace(
                info=SimpleNamespace(run_name=name, run_id=name),
                data=SimpleNamespace(
                    params=made | common | self.others.get(name, {}),
                    metrics={"test.auc": 0.5},
                    tags={"mlflow.source.git.commit": "c0ffee"},
                ),
            )

        return [run(name) for name in self.losses]

    def read_artifact(self, run_id: str, name: str) -> bytes:
        figures = dict.fromkeys(recipes.FIGURES, self.losses[run_id])
        if name.endswith("by_attribute.csv"):
            rows = ["set,attribute,value,auc,accuracy,ece,false_positive_rate", "test,mode,RGB,.1,.1,.1,.1"]
            rows += ["test,source,one,.9,.8,.1,.05", "other,source,one,.2,.2,.2,.2"] if self.sources else []
            return "\n".join(rows).encode()
        if name.endswith("calibration.json"):
            return json.dumps({"chosen_on": {"loss": self.losses[run_id]}}).encode()
        return json.dumps({"test": figures, "other": figures, "pooled": figures}).encode()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(**losses): results.json of these runs; row_seed=validation loss, which is also each figure of `other`."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "recipes.yaml").write_text((recipes.HERE / "recipes.yaml").read_text())
    (tmp_path / "params.yaml").write_text((recipes.project_root() / "params.yaml").read_text())
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setattr(recipes, "project_root", lambda: tmp_path)

    def write(others=(), sources=True, common=(), **losses: float) -> dict:
        store = Store(**losses)
        store.others, store.sources = dict(others), sources
        monkeypatch.setattr(recipes, "tracking", store)
        recipes.write_table("", list(common))
        return json.loads((tmp_path / "results.json").read_text())

    return write


def test_the_row_is_chosen_by_validation_loss_alone(table, tmp_path):
    found = table(published_1=0.6, cosine_1=0.3, cosine_2=0.5, combined_1=0.45, unknown_1=0.1, stray=0.0)
    assert list(found["ablation"]) == ["published", "cosine", "combined"]
    assert found["row"] == "cosine" and found["seeds"] == [1, 2] and found["commit"] == "c0ffee"
    assert found["test_sets"]["other"]["ece"] == pytest.approx(0.4)
    assert found["test_sets"]["one"] == {"auc": 0.9, "accuracy": 0.8, "ece": 0.1, "false_positive_rate": 0.05}
    assert "test" not in found["test_sets"]
    assert Image.open(io.BytesIO((tmp_path / "docs" / "recipes.png").read_bytes())).width > 500
    assert "| cosine | 0.400 | 0.900 ± 0.000 / 0.800 | 0.400 ± 1.271 / 0.400 |" in (tmp_path / "table.md").read_text()


def test_the_command_names_row_seeds_data_and_what_is_not_shipped(table):
    command = table(combined_2=0.4, combined_1=0.5)["command"]
    assert "--rows combined --seeds 1 2 --data one two --extra other" in command
    assert "-S model.image_size=128" in command and "-S train.epochs=3" in command
    assert "-S 'train.source_weights={one:0.25,two:0.75}'" in command and "manifest" not in command
    assert "-S model.weights=w.weights.h5" in command and "/x/" not in command
    recipes_of_row = {*ROWS["base"], *ROWS["rows"]["combined"]}
    assert not any(f"-S {key}=" in command for key in recipes_of_row)


def test_runs_of_other_data_or_length_stay_out_of_the_table(table, capsys):
    others = {"published-2": {"data.path": "['faces.zip']"}, "combined-1": {"train.epochs": "9"}}
    others |= {"average-1": {"train.learning_rate": "0.5"}}
    found = table(others, average_1=0.1, cosine_1=0.5, published_2=0.1, combined_1=0.1, published_1=0.6)
    assert list(found["ablation"]) == ["published", "cosine"] and found["ablation"]["published"]["seeds"] == [1]
    assert "epochs than the newest run: average-1, combined-1, published-2" in capsys.readouterr().out


def test_what_was_queued_for_all_rows_is_said_again_for_the_table(table):
    others = {name: {"train.batch_size": "128"} for name in ("cosine-1", "published-1")}
    with pytest.raises(UserError, match="no run of the ablation"):
        table(others, cosine_1=0.5, published_1=0.6)
    common = ["train.batch_size=128", "train.epochs=3"]
    found = table(others, common=common, cosine_1=0.5, published_1=0.6)
    assert list(found["ablation"]) == ["published", "cosine"] and "-S train.batch_size=128" in found["command"]


def test_one_source_without_a_further_set_is_shown_as_the_test_set(table):
    found = table(sources=False, published_1=0.5)
    assert set(found["test_sets"]) == {"test", "other"} and found["test_sets"]["test"]["auc"] == 0.5


def test_no_run_is_an_error_of_one_line(table, tmp_path):
    with pytest.raises(UserError, match="no run of the ablation"):
        table()
    assert not (tmp_path / "results.json").exists()


def test_a_failed_experiment_is_reported_after_the_others(monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or SimpleNamespace(returncode=1))
    monkeypatch.setattr("sys.argv", ["recipes", "queue", "--data", "a", "--rows", "published", "cosine"])
    with pytest.raises(UserError, match="2 of the experiments failed"):
        recipes.main()
    assert len(ran) == 2
