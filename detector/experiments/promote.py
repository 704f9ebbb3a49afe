"""The registered models: `python -m detector registry` lists them, `... promote` makes the better one champion.

Every evaluation makes its model a version of the registered model `deepfake-detector` in MLflow. The champion is the
version that people are meant to use. Another version takes its place only if it is significantly better on the same
test images (`detector.experiments.compare`) and its false positive rate is not significantly higher.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from detector.errors import UserError
from detector.experiments.compare import better_of, compare, sentence
from detector.experiments.references import Run, load
from detector.experiments.tables import aligned
from detector.metrics import HEADLINES, METRICS, check_metric, decimal
from detector.paths import EVALUATION_RUN, project_root

if TYPE_CHECKING:
    from detector.tracking.registry import Version

HELP = """\
List the versions of the registered model, newest first. Every evaluation registers one.
"""
PROMOTE = """\
Make a version the champion, if it is better than the champion on the same test images.

REFERENCE is a version (models:/deepfake-detector/3) or an MLflow run (its name, its id or the beginning of its id);
without one, the model of the last `dvc repro` is meant. It is better if the 95 % interval of the difference, from
resampling groups of the images, lies on the right side of 0; it must not call significantly more real images
fake. The verdict is recorded on the version. The first champion is promoted without a comparison.

Exit code: 0 it is the champion, 1 it is not better, 2 the two cannot be compared.
"""
PROMOTE_EPILOG = f"""\
{textwrap.fill("metrics: " + ", ".join(METRICS), 120)}

examples:
  python -m detector registry promote                                    the workspace's model
  python -m detector registry promote tidy-fern --set elsewhere          by a set of evaluate.extra_sets
  python -m detector registry promote models:/deepfake-detector/2 --force    back to version 2
"""


def main() -> None:
    parser = argparse.ArgumentParser("python -m detector registry", description=HELP)
    plain = argparse.RawDescriptionHelpFormatter
    promoting = parser.add_subparsers(dest="command", metavar="").add_parser(
        "promote",
        help="make a version the champion, if it is better",
        description=PROMOTE,
        epilog=PROMOTE_EPILOG,
        formatter_class=plain,
    )
    promoting.add_argument("reference", metavar="REFERENCE", nargs="?", help="a version or a run")
    promoting.add_argument("--set", default="test", metavar="NAME", help="the test set that decides (default: test)")
    promoting.add_argument("--metric", default="auc", metavar="NAME", help="what decides (default: auc)")
    promoting.add_argument("--force", action="store_true", help="without a comparison, to go back to an older one")
    arguments = parser.parse_args()
    if arguments.command is None:
        from detector.tracking import registry  # seconds

        print(table(registry.versions()))
        return
    check_metric("--metric", arguments.metric)
    is_champion, verdict = promote(arguments.reference, arguments.set, arguments.metric, arguments.force)
    print(verdict)
    sys.exit(0 if is_champion else 1)


def promote(reference: str | None, name: str = "test", metric: str = "auc", force: bool = False) -> tuple[bool, str]:
    """Make the version that `reference` means (None: the workspace's) the champion if it is better.

    Args:
        name: the test set that decides.
        metric: one of `METRICS`.
        force: without a comparison.

    Returns:
        Whether it is the champion now, and the verdict, a line that is also recorded on the version.

    Raises:
        UserError: no such version, or champion and candidate were not scored on the same images.
    """
    from detector.tracking import registry

    with registry.one_promotion():  # a second one waits and compares with the champion that the first leaves
        return _promote(_candidate(reference), name, metric, force)


def _promote(candidate: "Version", name: str, metric: str, force: bool) -> tuple[bool, str]:
    from detector.tracking import registry

    versions = registry.versions()
    champion = registry.champion(versions)
    if champion == candidate:
        return True, f"Already the champion: {candidate}."
    if champion is None:
        better, why = True, f"{candidate} is the first champion, there was none to compare with"
    elif force:
        better, why = True, f"{candidate} instead of {champion}, by --force, without a comparison"
    else:
        better, why = _compared(champion, candidate, versions, name, metric)
    verdict = f"{'Promoted' if better else 'Not promoted'}: {why}."
    if better:
        registry.set_champion(candidate.number)
    registry.tag_version(candidate.number, "promotion", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {verdict}")
    return better, verdict


def table(versions: Sequence["Version"]) -> str:
    """The versions for a terminal, with their metrics on the test set; UserError if there is none."""
    if not versions:
        raise UserError("MLflow: no model is registered yet; `dvc repro` registers what it evaluates")

    def figure(version: "Version", tag: str, form: Callable[[float], str]) -> str:
        try:
            return form(float(version.tags[tag]))
        except (KeyError, ValueError):  # not known, or changed by hand
            return "-"

    titles = [METRICS[name].title for name in HEADLINES]
    rows = [("version", "registered", "run", *titles, "images", "threshold", "data", "")]
    for version in versions:
        rows.append(
            (
                str(version.number),
                f"{version.created:%Y-%m-%d %H:%M}",
                f"{version.tags.get('run', '-')} {version.run_id[:8]}",
                *(figure(version, f"test.{name}", METRICS[name].text) for name in HEADLINES),
                figure(version, "test.n", "{:,.0f}".format),
                figure(version, "threshold", decimal),
                version.tags.get("data.digest", "-")[:8],
                ", ".join(version.aliases),
            )
        )
    columns = len(rows[0])
    lines = [*aligned(rows, (1, 2, columns - 2, columns - 1)), "", "Metrics on the test set; times in UTC."]
    lines += [f"{one.number}: {one.tags['promotion']}" for one in versions[:5] if "promotion" in one.tags]
    if not any("champion" in version.aliases for version in versions):
        lines.append("No champion yet: `make promote` takes the model of the last `dvc repro`.")
    return "\n".join(lines)


def _candidate(reference: str | None) -> "Version":
    from detector.tracking import registry, runs

    versions = registry.versions()
    if reference is None:
        recorded = project_root() / EVALUATION_RUN
        run_id = recorded.read_text().strip() if recorded.is_file() else None
        if run_id and runs.find_runs(run_id):
            return _of_run(run_id, versions)
        if versions:
            return versions[0]
        raise UserError("MLflow: no model is registered yet; `dvc repro` registers what it evaluates")
    if not reference.startswith("models:/"):
        return _of_run(runs.one_run(reference).run_id, versions)
    for version in versions:
        if reference in (version.uri, *(f"models:/{registry.REGISTERED}@{alias}" for alias in version.aliases)):
            return version
    known = f"1 to {versions[0].number}" if versions else "none"
    raise UserError(f"{reference}: no such version of {registry.REGISTERED}; there are {known}")


def _of_run(run_id: str, versions: Sequence["Version"]) -> "Version":
    """The newest version of the run; a run older than the registry is registered now."""
    from detector.tracking import registry

    return next((version for version in versions if version.run_id == run_id), None) or registry.register(run_id)


def _compared(
    champion: "Version", candidate: "Version", versions: Sequence["Version"], name: str, metric: str
) -> tuple[bool, str]:
    """Whether the candidate is better, and a sentence that says why."""
    a, b = _on_the_same_images(champion, candidate, versions, name)
    result = compare(a, b, [name], metric)["sets"][name]
    if not result["n_real"]:
        raise UserError(
            f"--set: {name} holds no real image, so the false positive rate of {candidate} is unknown; promote by "
            "another set"
        )
    if result["alike"]:
        return False, f"{candidate} scores all {result['n']:,} images of {name} as {champion}, the champion, does"

    def verdict(by: str, better: str | None) -> str:
        values = result["metrics"][by]
        return sentence(name, result["n"], by, values, better, f"{champion}, the champion,", str(candidate))

    fewer_false_positives = better_of(result["metrics"]["false_positive_rate"], "p_value")
    why = verdict(metric, result["better"])
    if result["better"] == "b" and fewer_false_positives == "a":
        why += f"; but {verdict('false_positive_rate', fewer_false_positives)}"
    return result["better"] == "b" and fewer_false_positives != "a", "; ".join([why, *result["notes"]])


def _on_the_same_images(
    champion: "Version", candidate: "Version", versions: Sequence["Version"], name: str
) -> tuple[Run, Run]:
    """An evaluation of each on the same images of the set `name`, under the same labels.

    Further evaluations of the same models count too: a model may have been evaluated again with more test sets.
    """
    if champion.run_id == candidate.run_id:
        raise UserError(
            f"{candidate}: shares its run with {champion}, the champion, and the run holds only the newer metrics; "
            "evaluate it under another parameter, or promote with --force"
        )
    of_champion, of_candidate = (list(_evaluations(one, versions, name)) for one in (champion, candidate))
    for version, evaluations in ((champion, of_champion), (candidate, of_candidate)):
        if not evaluations:
            raise UserError(
                f"--set: {version} was not scored on {name!r}; score it there: its run's parameters, the set in "
                "evaluate.extra_sets, `dvc repro`"
            )
    for a in of_champion:
        for b in of_candidate:
            if _images(a, name) == _images(b, name):
                return a, b
    labels_a, labels_b = (dict(_images(evaluations[0], name)) for evaluations in (of_champion, of_candidate))
    common = labels_a.keys() & labels_b.keys()
    if changed := sum(labels_a[image] != labels_b[image] for image in common):
        differs = f"the labels of {changed:,} images differ"
    else:
        differs = f"{len(common):,} images in common, of {len(labels_a):,} and {len(labels_b):,}"
    raise UserError(
        f"--set: {champion}, the champion, and {candidate} were scored on different images of {name!r} ({differs}); "
        "put one set into evaluate.extra_sets, evaluate both models on it and promote with --set"
    )


def _evaluations(version: "Version", versions: Sequence["Version"], name: str) -> Iterator[Run]:
    """The evaluations of the version's model that hold the set, its own first."""
    model = version.tags.get("model")
    same = [one for one in versions if model and one.tags.get("model") == model and one.run_id != version.run_id]
    for one in (version, *same):
        try:
            run = load(f"mlflow:{one.run_id}")
        except UserError:
            if one is version:
                raise
            continue  # its run was deleted
        if "sha256" not in run.predictions:
            raise UserError(f"{one}: its predictions do not name the images' SHA-256; run `dvc repro -s -f evaluate`")
        if (run.predictions["set"] == name).any():
            yield run


def _images(run: Run, name: str) -> list[tuple[str, int]]:
    """SHA-256 and label of the images of a set, in order."""
    rows = run.predictions[run.predictions["set"] == name]
    return sorted(zip(rows["sha256"], rows["label"], strict=True))
