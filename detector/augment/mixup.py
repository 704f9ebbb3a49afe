"""Mixup within pairs of a real and a fake image of one group.

Zhang et al., "mixup: Beyond empirical risk minimization" (ICLR 2018), equation 1, with the partner chosen: the third
place of the Deepfake Detection Challenge (2020) mixed each fake with the real image that it was made of.
"""

import numpy as np


def mix_pairs(pairs: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mix pairs of images, targets or weights: each keeps its share and takes the rest from its partner.

    Args:
        pairs: (p, 2, ...), uint8 images or float32 numbers.
        share: float (p,), in 0..1, the share that both of a pair keep.

    Returns:
        (p, 2, ...), of the type of `pairs`; images are rounded.
    """
    own = share.astype(np.float32).reshape(-1, *[1] * (pairs.ndim - 1))
    mixed = own * pairs + (1 - own) * pairs[:, ::-1]
    return (np.rint(mixed) if pairs.dtype == np.uint8 else mixed).astype(pairs.dtype)
