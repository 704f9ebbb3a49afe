"""Shortcuts: does a trivial property of the files tell fake from real?

A small classifier sees one trivial property of the images and nothing else. Where it tells fake from real, a detector
can score well for the wrong reason, or learn something that is true of one split alone (Geirhos et al.,
"Shortcut learning in deep neural networks", Nature Machine Intelligence 2, 2020).
"""

import io
from collections.abc import Hashable, Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from detector.images import FORMATS

FEATURES = np.dtype(
    [("file_size", "u4", (1,)), ("dimensions", "u2", (2,)), ("encoding", "u2", (135,)), ("thumbnail", "u1", (768,))]
)
NAMES = {
    "file_size": "The size of the file",
    "dimensions": "The width and height",
    "encoding": "The encoding of the file (format, JPEG tables, subsampling, metadata)",
    "thumbnail": "A thumbnail of 16x16 pixels (colours and layout)",
}

MAX_ROWS = 20_000  # images of a split; the standard error of an AUC of .5 is then .004
MAX_ROWS_WITHIN = 5_000  # for cross-validation, which trains five times; .008
FOLDS = 5
# Below .6 the best accuracy on balanced classes is about 57 %: too little to explain a score. Four standard errors,
# because an audit looks at dozens of AUCs, and cross-validation varies more than the formula says: with three, one
# audit in ten of features drawn at random gave a warning.
MIN_AUC = 0.6
STANDARD_ERRORS = 4.0

AUCs = Mapping[str, Mapping[str, float | None]]


def trivial_features(data: bytes, image: np.ndarray) -> np.ndarray:
    """Return the trivial properties of an image, 1,046 bytes of plain numbers.

    Args:
        data: the image file as it came, in one of `images.FORMATS`; only its header is read.
        image: (H, W, 3) uint8 RGB, its pixels.

    Returns:
        () of dtype `FEATURES`; `np.stack` makes the (n,) array that `shortcut_audit` takes.
            file_size: bytes.
            dimensions: width and height in pixels.
            encoding: the first two JPEG quantisation tables (64 + 64; zeros if none), their number, chroma
                subsampling (1 4:4:4, 2 4:2:2, 3 4:2:0, 0 other), progressive or not, file format, number of
                bands, bytes of EXIF and of colour profile.
            thumbnail: 16 x 16 x 3 levels 0..255, averaged by area.
    """
    row = np.zeros((), FEATURES)
    row["file_size"] = len(data)
    row["dimensions"] = np.minimum(image.shape[1::-1], 65535)
    row["encoding"] = _encoding(data)
    small = cv2.resize(np.ascontiguousarray(image), (16, 16), interpolation=cv2.INTER_AREA)
    row["thumbnail"] = small.ravel()
    return row


def shortcut_audit(
    features: np.ndarray,
    labels: Sequence[int],
    splits: Sequence[str],
    rng: np.random.Generator,
    groups: Sequence[Hashable],
) -> dict:
    """Measure how well each trivial feature alone tells fake from real, in two ways.

    From train: a classifier is trained on the train split and measured on every other one. It says whether a detector
    trained here can score there without looking at a face. An AUC below .5 is no shortcut: what holds in train
    misleads there. Within: five-fold cross-validation inside each split. It says whether the fakes of the split differ
    from its real images in this feature.

    Args:
        features: (n,) of dtype `FEATURES`.
        labels: (n,) 0 real, 1 fake.
        splits: (n,) names; the one to train on is "train".
        rng: draws `MAX_ROWS` images of a larger split, and the folds.
        groups: (n,) images of one group share a source and stay in one fold.

    Returns:
        JSON-ready, in seconds whatever n: "from_train" and "within" {feature: {split: AUC}}, None where images of a
        class are too few; "images" {split: number used}; "warnings", one sentence for each feature and reason to worry.
    """
    labels, splits = np.asarray(labels), np.asarray(splits, dtype=str)
    number: dict[Hashable, int] = {}
    codes = np.array([number.setdefault(group, len(number)) for group in groups])
    names = sorted(set(splits.tolist()), key=lambda name: (name != "train", name != "validation", name))
    rows = {name: _sample(np.flatnonzero(splits == name), MAX_ROWS, rng) for name in names}
    few = {name: _sample(rows[name], MAX_ROWS_WITHIN, rng) for name in names}
    folds = {name: _folds(labels[part], codes[part], rng) for name, part in few.items()}
    from_train = {feature: _from_train(feature, features, labels, rows) for feature in FEATURES.names}
    within = {
        feature: {
            name: _cross_validate(feature, _inputs(features, feature, part), labels[part], folds[name])
            for name, part in few.items()
        }
        for feature in FEATURES.names
    }
    chance = {name: _best_of_chance(labels[part], codes[part]) for name, part in few.items()}
    images = {name: {label: features[part[labels[part] == label]] for label in (0, 1)} for name, part in rows.items()}
    return {
        "from_train": from_train,
        "within": within,
        "images": {name: len(part) for name, part in rows.items()},
        "warnings": _warnings(from_train, within, chance, images),
    }


def _from_train(
    feature: str, features: np.ndarray, labels: np.ndarray, rows: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    """The AUC in every other split of a classifier trained on train."""
    others = {name: part for name, part in rows.items() if name != "train"}
    train = rows.get("train", np.empty(0, int))
    if len(np.unique(labels[train])) < 2:
        return dict.fromkeys(others)
    model = _classifier(feature).fit(_inputs(features, feature, train), labels[train])
    return {name: _auc(model, _inputs(features, feature, part), labels[part]) for name, part in others.items()}


def null_standard_error(n_real: int, n_fake: int) -> float:
    """Standard error of the AUC of a useless score (Hanley and McNeil, Radiology 143, 1982, with A = 1/2)."""
    return float(np.sqrt((n_real + n_fake + 1) / (12 * n_real * n_fake)))


def _encoding(data: bytes) -> np.ndarray:
    numbers = np.zeros(FEATURES["encoding"].shape, np.int64)
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        tables = [table for _, table in sorted(getattr(file, "quantization", {}).items())]
        for start, table in zip((0, 64), tables, strict=False):
            numbers[start : start + 64] = table
        numbers[128:] = (
            len(tables),
            JpegImagePlugin.get_sampling(file) + 1 if tables else 0,
            bool(file.info.get("progressive")),
            FORMATS.index(file.format) if file.format in FORMATS else len(FORMATS),
            len(file.getbands()),
            len(file.info.get("exif") or b""),
            len(file.info.get("icc_profile") or b""),
        )
    return numbers.clip(0, 65535)


def _inputs(features: np.ndarray, feature: str, rows: np.ndarray) -> np.ndarray:
    x = features[feature][rows].astype(np.float32)
    if feature == "dimensions":
        x = np.column_stack([x, x[:, 0] / x[:, 1]])
    return np.log(x) if feature in ("file_size", "dimensions") else x


def _classifier(feature: str):
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    line = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200, tol=1e-3))
    if feature == "thumbnail":
        return line
    # The line sees "fakes are larger" in few images; the tree sees "fakes are exactly 256 wide".
    tree = DecisionTreeClassifier(max_depth=5, min_samples_leaf=5, random_state=0)
    return VotingClassifier([("line", line), ("tree", tree)], voting="soft")


def _auc(model, x: np.ndarray, y: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(y, model.predict_proba(x)[:, 1])), 4) if len(np.unique(y)) == 2 else None


def _folds(y: np.ndarray, codes: np.ndarray, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (fit, test) indices of folds that keep groups whole and have both classes on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    if min(len(np.unique(codes[y == label])) for label in (0, 1)) < FOLDS:
        return []
    deal = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
    return [
        (fit, test) for fit, test in deal.split(y, y, codes) if len(np.unique(y[fit])) == len(np.unique(y[test])) == 2
    ]


def _cross_validate(feature: str, x: np.ndarray, y: np.ndarray, folds: Sequence) -> float | None:
    aucs = [_auc(_classifier(feature).fit(x[fit], y[fit]), x[test], y[test]) for fit, test in folds]
    return round(float(np.mean(aucs)), 4) if aucs else None


def _best_of_chance(labels: np.ndarray, codes: np.ndarray) -> float:
    """Return the AUC that chance does not reach; images of one group count as one, because they are alike."""
    real, fake = (len(np.unique(codes[labels == label])) for label in (0, 1))
    return 0.5 + STANDARD_ERRORS * null_standard_error(real, fake) if real and fake else 1.0


def _warnings(
    from_train: AUCs, within: AUCs, chance: Mapping[str, float], images: Mapping[str, Mapping[int, np.ndarray]]
) -> list[str]:
    def matters(split: str, auc: float | None) -> bool:
        return auc is not None and auc > max(chance[split], MIN_AUC)

    sentences = []
    for feature, name in NAMES.items():
        # What does not tell the classes apart within train cannot be learnt there.
        train = within[feature].get("train")
        learnt = train is not None and train > chance["train"]
        carried = {split: auc for split, auc in from_train[feature].items() if learnt and matters(split, auc)}
        inside = {split: auc for split, auc in within[feature].items() if split not in carried and matters(split, auc)}
        taught = {split: inside.pop(split) for split in ("train",) if split in inside}
        for aucs, verb, why in (
            (taught, "alone tells fake from real within", "a detector may learn it in place of faces"),
            (carried, "alone, learnt on train, tells fake from real in", "a score there need not come from faces"),
            (inside, "alone tells fake from real within", "they differ there in more than faces"),
        ):
            if aucs:
                places = ", ".join(
                    f"{split} (AUC {auc:.2f}, chance 0.50{_medians(feature, images[split])})"
                    for split, auc in aucs.items()
                )
                sentences.append(f"{name} {verb} {places}: {why}.")
    return sentences


def _medians(feature: str, images: Mapping[int, np.ndarray]) -> str:
    if feature not in ("file_size", "dimensions"):
        return ""
    real, fake = (np.median(images[label][feature], axis=0) for label in (0, 1))
    if feature == "file_size":
        return f"; median fake {fake[0] / 1000:.1f} kB, real {real[0] / 1000:.1f} kB"
    return f"; median fake {fake[0]:.0f} x {fake[1]:.0f}, real {real[0]:.0f} x {real[1]:.0f} pixels"


def _sample(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(rows, size, replace=False)) if len(rows) > size else rows
