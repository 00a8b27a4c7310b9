"""The embedded data set: ten classes of 32 x 32 RGB images, generated from a seed, without a download.

Each class has a smooth colour template. An image is the template of its class, shifted by a few pixels, plus smooth clutter of
its own, plus pixel noise. The clutter is stronger than the template. A classifier with few training images therefore memorises
the clutter of its members, which is what an attacker detects, and recognises most other images by their template.
"""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from common.data.sources import Source, array_md5

SEED = 2025
TRAIN, TEST, CLASSES, SIZE = 4_000, 4_000, 10, 32
SHIFT = 3  # at most, in pixels, in either direction of both axes
SIGNAL, CLUTTER, NOISE = 17.0, 40.0, 14.0  # standard deviations in grey levels of 0..255


def generate(root: Path | None = None) -> Source:
    """4,000 training and 4,000 test images, of balanced classes in random order.

    `root` is ignored. It is there because every loader has it.
    """
    rng = np.random.default_rng(SEED)
    templates = _smooth(rng, CLASSES, sigma=4.0)
    splits = []
    for count in (TRAIN, TEST):
        labels = rng.permutation(np.arange(count) % CLASSES)
        shifts = rng.integers(-SHIFT, SHIFT + 1, size=(count, 2))
        shifted = np.stack([np.roll(templates[label], shift, axis=(1, 2)) for label, shift in zip(labels, shifts, strict=True)])
        grey = 128 + SIGNAL * shifted + CLUTTER * _smooth(rng, count, sigma=2.0)
        grey += NOISE * rng.standard_normal(grey.shape)
        splits.append((np.clip(np.rint(grey), 0, 255).astype(np.uint8), labels.astype(np.int64)))
    (train, train_labels), (test, test_labels) = splits
    return Source(train, train_labels, test, test_labels, {"train": array_md5(train), "test": array_md5(test)})


def _smooth(rng: np.random.Generator, count: int, sigma: float) -> np.ndarray:
    """Random periodic fields [count, 3, 32, 32], each channel of unit variance and smooth at the scale of `sigma` pixels."""
    fields = rng.standard_normal((count, 3, SIZE, SIZE))
    smooth = gaussian_filter(fields, sigma=(0, 0, sigma, sigma), mode="wrap")
    return smooth / smooth.std(axis=(2, 3), keepdims=True)
