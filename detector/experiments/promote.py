"""The registered models: `python -m detector registry` lists them, `... promote` makes the better one champion.

Every evaluation makes its model a version of the registered model `deepfake-detector` in MLflow. The champion is the
version that people are meant to use. Another takes its place only if it beats it on the same test images, beyond what
the choice of these images could do (`detector.experiments.compare`), and does not call more real people fake.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from detector.errors import UserError
from detector.experiments.compare import better_of, compare, sentence
from detector.experiments.references import Run, load
from detector.metrics import METRICS
from detector.paths import EVALUATION_RUN, project_root

if TYPE_CHECKING:
    from detector.tracking.registry import Version

ACCUSED = "false_positive_rate"

HELP = """\
List the versions of the registered model, newest first. Every evaluation registers one.
"""
PROMOTE = """\
Make a version the champion, if it is better than the champion on the same test images.

REFERENCE is a version (models:/deepfake-detector/3) or an MLflow run (its name, its id or the beginning of its id);
without one, the model of the last `dvc repro` is meant. It is better if the 95 % interval of the difference, from
resampling the sources of the images, lies on the right side of 0; it must not call significantly more real images
fake. The verdict is noted on the version. The first champion needs to beat nobody.

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
    if arguments.metric not in METRICS:
        raise UserError(f"--metric: there is no {arguments.metric!r}; choose from {', '.join(METRICS)}")
    is_champion, verdict = promote(arguments.reference, arguments.set, arguments.metric, arguments.force)
    print(verdict)
    sys.exit(0 if is_champion else 1)


def promote(reference: str | None, name: str = "test", metric: str = "auc", force: bool = False) -> tuple[bool, str]:
    """Make the version that `reference` means (None: the workspace's) the champion if it is better.

    Args:
        name: the test set that decides.
        metric: one of `scoring.METRICS`.
        force: without a comparison.

    Returns:
        Whether it is the champion now, and the verdict, a line that is also noted on the version.

    Raises:
        UserError: no such version, or champion and candidate were not scored on the same images.
    """
    from detector.tracking import registry

    with registry.one_promotion():  # of two at once the later is held against what the first has made champion
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
        better, why = _judged(champion, candidate, versions, name, metric)
    verdict = f"{'Promoted' if better else 'Not promoted'}: {why}."
    if better:
        registry.set_champion(candidate.number)
    registry.tag_version(candidate.number, "promotion", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {verdict}")
    return better, verdict


def table(versions: Sequence["Version"]) -> str:
    """The versions for a terminal, with what they scored on the test set; UserError if there is none."""
    if not versions:
        raise UserError("MLflow: no model is registered yet; `dvc repro` registers what it evaluates")

    def figure(version: "Version", tag: str, form: str) -> str:
        try:
            return format(float(version.tags[tag]), form)
        except (KeyError, ValueError):  # not known, or changed by hand
            return "-"

    rows = [("version", "registered", "run", "AUC", "accuracy", "accused", "Brier", "images", "threshold", "data", "")]
    for version in versions:
        rows.append(
            (
                str(version.number),
                f"{version.created:%Y-%m-%d %H:%M}",
                f"{version.tags.get('run', '-')} {version.run_id[:8]}",
                figure(version, "test.auc", ".3f"),
                figure(version, "test.accuracy", ".1%"),
                figure(version, f"test.{ACCUSED}", ".1%"),
                figure(version, "test.brier", ".3f"),
                figure(version, "test.n", ",.0f"),
                figure(version, "threshold", ".3f"),
                version.tags.get("data.digest", "-")[:8],
                ", ".join(version.aliases),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush_left = (1, 2, 9, 10)
    lines = [
        "  ".join(
            cell.ljust(wide) if i in flush_left else cell.rjust(wide)
            for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", "Scores on the test set; accused: real images called fake; times in UTC."]
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
    """The newest version of the run; runs of before there was a registry get one."""
    from detector.tracking import registry

    return next((version for version in versions if version.run_id == run_id), None) or registry.register(run_id)


def _judged(
    champion: "Version", candidate: "Version", versions: Sequence["Version"], name: str, metric: str
) -> tuple[bool, str]:
    """Whether the candidate is better, and a sentence that says why."""
    a, b = _on_the_same_images(champion, candidate, versions, name)
    found = compare(a, b, [name], metric)["sets"][name]
    if not found["n_real"]:
        raise UserError(
            f"--set: {name} holds no real image: whether {candidate} accuses more is not known; promote by another set"
        )
    if found["alike"]:
        return False, f"{candidate} scores all {found['n']:,} images of {name} as {champion}, the champion, does"

    def said(of: str, better: str | None) -> str:
        values = found["metrics"][of]
        return sentence(name, found["n"], of, values, better, f"{champion}, the champion,", str(candidate))

    accuses = better_of(found["metrics"][ACCUSED], "p_value")
    why = said(metric, found["better"])
    if found["better"] == "b" and accuses == "a":
        why += f"; but {said(ACCUSED, accuses)}"
    return found["better"] == "b" and accuses != "a", "; ".join([why, *found["notes"]])


def _on_the_same_images(
    champion: "Version", candidate: "Version", versions: Sequence["Version"], name: str
) -> tuple[Run, Run]:
    """An evaluation of each on the same images of the set `name`, under the same labels.

    Not only those that the two versions stand for: the same model may have been evaluated again, with more test sets.
    """
    if champion.run_id == candidate.run_id:
        raise UserError(
            f"{candidate}: shares its run with {champion}, the champion, and the run holds the newer figures alone; "
            "evaluate it under another parameter, or promote with --force"
        )
    ours, theirs = list(_scored(champion, versions, name)), list(_scored(candidate, versions, name))
    for version, found in ((champion, ours), (candidate, theirs)):
        if not found:
            raise UserError(
                f"--set: {version} was not scored on {name!r}; score it there: its run's parameters, the set in "
                "evaluate.extra_sets, `dvc repro`"
            )
    for a in ours:
        for b in theirs:
            if _images(a, name) == _images(b, name):
                return a, b
    of_a, of_b = (dict(_images(found[0], name)) for found in (ours, theirs))
    common = of_a.keys() & of_b.keys()
    if turned := sum(of_a[image] != of_b[image] for image in common):
        differs = f"the labels of {turned:,} images differ"
    else:
        differs = f"{len(common):,} images in common, of {len(of_a):,} and {len(of_b):,}"
    raise UserError(
        f"--set: {champion}, the champion, and {candidate} were scored on different images of {name!r} ({differs}); "
        "put one set into evaluate.extra_sets, evaluate both models on it and promote with --set"
    )


def _scored(version: "Version", versions: Sequence["Version"], name: str) -> Iterator[Run]:
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
