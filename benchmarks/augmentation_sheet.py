"""Draws docs/augmentation.jpg, every corruption and some self-blended fakes on one drawn portrait, for the README.

python -m benchmarks.augmentation_sheet
"""

import numpy as np
from matplotlib.figure import Figure

from detector.augment.corruption import CORRUPTIONS, corrupt
from detector.augment.self_blend import self_blend
from detector.images import decode
from detector.params import load_params
from detector.paths import project_root
from detector.synthetic.sample import draw_sample

COLUMNS, STRENGTH, SIZE = 9, 0.6, 192


def main() -> None:
    params = load_params(project_root() / "params.yaml")
    drawn = draw_sample({"Train": 8}, SIZE, params.seed)
    real = [decode(portrait.jpeg) for portrait in drawn if portrait.path.split("/")[1] == "Real"]
    face, other = real[0], real[-1]
    tiles = [("as it was drawn", face)]
    for name, corruption in sorted(CORRUPTIONS.items(), key=lambda item: (item[1].corruption_set, item[1].family)):
        corrupted = corrupt(face, name, STRENGTH, np.random.default_rng(params.seed))
        tiles.append((f"{name.replace('_', ' ')}\n{corruption.corruption_set}", corrupted))
    for seed in range(5):
        tiles.append(("self-blended", self_blend(face, np.random.default_rng(seed))))
    for seed in range(4):
        tiles.append(("with another's face", self_blend(face, np.random.default_rng(seed), other)))

    rows = -(-len(tiles) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * 1.15, rows * 1.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, (caption, image) in zip(panels, tiles, strict=False):
        panel.imshow(image)
        panel.set_title(caption, fontsize=7)
    path = project_root() / "docs" / "augmentation.jpg"
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 85})
    print(path)


if __name__ == "__main__":
    main()
