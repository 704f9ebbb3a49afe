"""The ablation: its commands change what they say, and its table is chosen by validation alone."""

import argparse
import io
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.recipes import __main__ as recipes
from detector.errors import UserError
from detector.evaluation.bootstrap import bootstrap
from detector.experiments.recipes import changed, of_data, read
from detector.metrics import METRICS, score
from detector.params import check_params, flatten, read_yaml
from detector.tracking.store import tracking_uri

TABLE = read_yaml(recipes.HERE / "recipes.yaml")


def options(**changes) -> argparse.Namespace:
    values = {"data": ["a b.zip", "it's"], "extra": ["c"], "seeds": [1], "rows": None, "common": [], "run": False}
    return argparse.Namespace(**values | {"prefix": ""} | changes)


def settings(command: list[str]) -> dict[str, str]:
    """What a `dvc exp run` sets."""
    return dict(command[at + 1].split("=", 1) for at, word in enumerate(command) if word == "-S")


@pytest.mark.parametrize("row", TABLE["rows"])
def test_every_row_is_made_of_parameters_that_exist(row):
    settings = recipes.all_rows()[row]
    raw = read_yaml(recipes.project_root() / "params.yaml")
    given = flatten(check_params(changed(raw, {**of_data(["faces.zip"]), **settings}), row))
    assert {key: given[key] for key in settings} == settings


def test_rows_are_a_recipe_and_what_they_change_in_it():
    rows = recipes.all_rows()
    assert rows["published"] == read("published") and rows["recommended"] == read("recommended")
    assert rows["cutout"] == {**read("published"), "augment.cutout": 0.3}
    assert len({tuple(map(str, settings.values())) for settings in rows.values()}) == len(rows)


def test_a_row_changes_the_base_and_nothing_else():
    base, row = recipes.commands(options(rows=["published", "self-blend"], seeds=[7]))
    assert "published-7" in base and "self-blend-7" in row
    changes = {key for key, value in settings(row).items() if settings(base).get(key) != value}
    assert changes == set(TABLE["rows"]["self-blend"])


@pytest.mark.parametrize("row", TABLE["rows"])
def test_a_row_pins_every_parameter_of_training_so_that_params_yaml_decides_nothing(defaults, row):
    training = {key for key in flatten(defaults) if key.startswith(("model.", "augment.", "train."))}
    assert training - {"train.source_weights"} <= set(recipes.all_rows()[row])


def test_one_experiment_a_row_and_seed_queued_or_run_beside_the_workspace():
    queued = recipes.commands(options(seeds=[1, 2], prefix="p-", common=["train.epochs=2"]))
    names = [command[command.index("-n") + 1] for command in queued]
    assert len(set(names)) == len(names) == 2 * len(TABLE["rows"]) and all(name.startswith("p-") for name in names)
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


def scored(name: str, n: int = 60) -> pd.DataFrame:
    """predictions.csv of a run: the further set `other`, and two alike sources of the test split."""
    rng = np.random.default_rng(sum(map(ord, name)))
    label = np.arange(n) % 2
    rows = pd.DataFrame({"label": label, "p_fake": np.clip(0.3 + 0.3 * label + rng.normal(0, 0.2, n), 0, 1)})
    rows["group"] = [f"g{i // 3}" for i in range(n)]
    parts = [("other", ""), ("test", "one/"), ("test", "two/")]
    return pd.concat(rows.assign(set=name, path=[f"{at}{i}.jpg" for i in range(n)]) for name, at in parts)


class Store:
    """MLflow runs with the files of an evaluation, in place of `detector.tracking.runs`."""

    def __init__(self, **losses: float):
        self.losses = {name.replace("_", "-"): loss for name, loss in losses.items()}
        self.others: dict[str, dict[str, str]] = {}  # run -> the parameters in which it differs
        self.parents: dict[str, str] = {}  # run -> the one whose model it evaluates once more
        self.sources = True

    def all_runs(self):
        common = {"data.source": "folder", "data.path": "['/x/one', '/x/two']", "evaluate.extra_sets.other": ""}
        common |= {"train.source_weights.one": "0.25", "train.source_weights.two": "0.75", "data.manifest": "None"}
        common |= {"evaluate.bootstrap": "200", "model.weights": "/x/w.weights.h5", "model.image_size": "128"}

        def run(name: str) -> SimpleNamespace:
            row, _, seed = name.rpartition("-") if name[-1].isdigit() else (name, "", "42")
            made = {key: str(value) for key, value in recipes.all_rows().get(row, {}).items()}
            tags = {"mlflow.source.git.commit": "c0ffee", "machine": "a processor (AVX2)"}
            if name in self.parents:
                tags = {"mlflow.parentRunId": self.parents[name]}
            params = made | common | {"seed": seed} | self.others.get(name, {})
            return SimpleNamespace(
                info=SimpleNamespace(run_name=name, run_id=name),
                data=SimpleNamespace(params=params, metrics={"test.auc": 0.5}, tags=tags),
            )

        return [run(name) for name in self.losses]

    def read_artifact(self, run_id: str, name: str) -> bytes:
        if name in ("metrics/train.json", "metrics/data.json") and run_id in self.parents:
            raise UserError(f"{run_id} has no {name}")
        if name.endswith("train.json"):
            return json.dumps({"epochs": 7}).encode()
        if name.endswith("data.json"):
            return json.dumps({"counts": {"train": {"real": 50, "fake": 51}}}).encode()
        if name.endswith("predictions.csv"):
            return scored(run_id).to_csv(index=False).encode()
        if name.endswith("by_attribute.csv"):
            rows = ["set,attribute,value", "test,mode,RGB"]
            rows += ["test,source,one", "test,source,two", "other,source,one"] if self.sources else []
            return "\n".join(rows).encode()
        if name.endswith("calibration.json"):
            return json.dumps({"chosen_on": {"loss": self.losses[run_id]}}).encode()
        return json.dumps({"test": {"threshold": 0.4}, "other": {"threshold": 0.5}, "pooled": {}}).encode()


# What every run of the store was queued with.
QUEUED = ["model.weights=/x/w.weights.h5", "model.image_size=128"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(**losses): results.json of these runs; row_seed=validation loss."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "recipes.yaml").write_text((recipes.HERE / "recipes.yaml").read_text())
    (tmp_path / "params.yaml").write_text((recipes.project_root() / "params.yaml").read_text())
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setattr(recipes, "project_root", lambda: tmp_path)

    def write(others=(), sources=True, common=(), parents=(), **losses: float) -> dict:
        store = Store(**losses)
        store.others, store.sources, store.parents = dict(others), sources, dict(parents)
        monkeypatch.setattr(recipes, "runs", store)
        recipes.write_table("", [*QUEUED, *common])
        return json.loads((tmp_path / "results.json").read_text())

    return write


def test_the_row_is_chosen_by_validation_loss_alone(table, tmp_path):
    found = table(published_1=0.6, cosine_1=0.3, cosine_2=0.5, paired_1=0.45, unknown_1=0.1, stray=0.0)
    assert list(found["ablation"]) == ["published", "paired", "cosine"]
    assert found["row"] == "cosine" and found["seeds"] == [1, 2] and found["commit"] == "c0ffee"
    assert list(found["test_sets"]) == ["one", "two", "other"]
    assert Image.open(io.BytesIO((tmp_path / "docs" / "recipes.png").read_bytes())).width > 500


def test_several_seeds_give_their_mean_and_students_interval(table, tmp_path):
    found = table(published_1=0.6, cosine_1=0.3, cosine_2=0.5)["ablation"]["cosine"]
    one, two = (scored(name).query("set == 'other'") for name in ("cosine-1", "cosine-2"))
    values = [score(rows["label"].to_numpy(), rows["p_fake"].to_numpy(), 0.5)["ece"] for rows in (one, two)]
    assert found["test_sets"]["other"]["ece"] == recipes._mean(values)
    assert found["validation_loss"]["mean"] == pytest.approx(0.4)
    assert "| cosine | 1, 2 | 0.400 | " in (tmp_path / "table.md").read_text()


def test_one_seed_gives_the_interval_of_resampled_groups(table, tmp_path):
    found = table(published_3=0.6)["ablation"]["published"]["test_sets"]
    rows = scored("published-3").query("set == 'test' and path.str.startswith('two/')")
    labels, p_fake = rows["label"].to_numpy(), rows["p_fake"].to_numpy()
    values = score(labels, p_fake, 0.4)
    spread = bootstrap(labels, p_fake, rows["group"].tolist(), 0.4, n=200, seed=3)
    assert found["two"] == {name: {"mean": values[name], **spread[name]} for name in METRICS}
    auc = found["two"]["auc"]
    assert auc["low"] < auc["mean"] < auc["high"]
    assert f"{auc['mean']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), " in (tmp_path / "table.md").read_text()


def test_a_row_says_where_it_comes_from(table):
    (row,) = table(recommended_5=0.6)["ablation"].values()
    (run,) = row["runs"]
    assert run == {
        "seed": 5,
        "run": "recommended-5",
        "images_seen": 7 * 96,  # of 101 images three whole batches of 32 an epoch
        "image_sizes": [128],
        "machine": "a processor (AVX2)",
        "commit": "c0ffee",
    }
    assert row["seeds"] == [5] and "--rows recommended --seeds 5" in row["command"]


def test_the_sizes_of_progressive_training_are_said(table):
    found = table({"progressive-1": {"model.image_size": "256"}}, common=["model.image_size=256"], progressive_1=0.6)
    assert found["ablation"]["progressive"]["runs"][0]["image_sizes"] == [128, 256]


def test_another_evaluation_of_one_training_says_where_that_was_made(table):
    found = table(flip_average_1=0.5, published_1=0.6, parents={"flip-average-1": "published-1"})
    (run,) = found["ablation"]["flip-average"]["runs"]
    assert (run["images_seen"], run["machine"], run["commit"]) == (7 * 96, "a processor (AVX2)", "c0ffee")


def test_a_recipe_run_by_its_name_is_a_run_of_its_row(table):
    others = {"published-2": {"seed": "9"}}
    found = table(others, published=0.5, published_2=0.6)
    assert found["ablation"]["published"]["seeds"] == [9, 42]


def test_the_command_names_row_seeds_data_and_what_is_not_shipped(table):
    command = table(cutout_2=0.4, cutout_1=0.5)["command"]
    assert "--rows cutout --seeds 1 2 --data one two --extra other" in command
    assert "-S model.image_size=128" in command and "-S evaluate.bootstrap=200" in command
    assert "-S 'train.source_weights={one:0.25,two:0.75}'" in command and "manifest" not in command
    assert "-S model.weights=w.weights.h5" in command and "/x/" not in command
    own = recipes.all_rows()["cutout"].keys() - {"model.image_size", "model.weights"}
    assert not any(f"-S {key}=" in command for key in own)


def test_runs_of_other_data_or_settings_stay_out_of_the_table_and_the_reason_is_said(table, capsys):
    others = {"published-2": {"data.path": "['faces.zip']"}, "paired-1": {"train.epochs": "9"}}
    others |= {"ema-1": {"train.learning_rate": "0.5", "evaluate.threshold": "auto"}}
    found = table(others, ema_1=0.1, cosine_1=0.5, published_2=0.1, paired_1=0.1, published_1=0.6)
    assert list(found["ablation"]) == ["published", "cosine"] and found["ablation"]["published"]["seeds"] == [1]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert [line.split()[2] for line in said] == ["ema-1,", "paired-1,", "published-2,"]
    assert said[0].endswith(" in train.learning_rate, evaluate.threshold")
    assert said[1].endswith(" in train.epochs") and said[2].endswith(" in data.path")


def test_what_was_queued_for_all_rows_is_said_again_for_the_table(table):
    others = {name: {"train.batch_size": "128"} for name in ("cosine-1", "published-1")}
    with pytest.raises(UserError, match="no run of the ablation"):
        table(others, cosine_1=0.5, published_1=0.6)
    found = table(others, common=["train.batch_size=128", "train.epochs=10"], cosine_1=0.5, published_1=0.6)
    assert list(found["ablation"]) == ["published", "cosine"] and "-S train.batch_size=128" in found["command"]


def test_one_source_without_a_further_set_is_shown_as_the_test_set(table):
    found = table(sources=False, published_1=0.5)
    assert set(found["test_sets"]) == {"test", "other"}


def test_no_run_is_an_error_of_one_line(table, tmp_path):
    with pytest.raises(UserError, match="no run of the ablation"):
        table()
    assert not (tmp_path / "results.json").exists()


def test_a_store_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["recipes", "table", "--store", str(tmp_path)])
    with pytest.raises(UserError, match=r"--store: .*mlflow\.db is not there"):
        recipes.main()


def test_the_table_of_another_clone_reads_its_store(monkeypatch, tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "elsewhere")
    seen = []
    monkeypatch.setattr(recipes, "write_table", lambda *_: seen.append(tracking_uri()))
    monkeypatch.setattr("sys.argv", ["recipes", "table", "--store", str(tmp_path)])
    recipes.main()
    assert seen == [f"sqlite:///{tmp_path.resolve()}/mlruns/mlflow.db"]


def test_a_failed_experiment_is_reported_after_the_others(monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or SimpleNamespace(returncode=1))
    monkeypatch.setattr("sys.argv", ["recipes", "queue", "--data", "a", "--rows", "published", "cosine"])
    with pytest.raises(UserError, match="2 of the experiments failed"):
        recipes.main()
    assert len(ran) == 2
