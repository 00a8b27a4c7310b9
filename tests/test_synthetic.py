"""The embedded data set: balanced, all different, learnable, and the same on every machine."""

import hashlib

import numpy as np

from common.data.sources import Source
from common.data.synthetic import generate


def test_synthetic_images_are_balanced_bytes(synthetic: Source) -> None:
    for images, labels in (
        (synthetic.train_images, synthetic.train_labels),
        (synthetic.test_images, synthetic.test_labels),
    ):
        assert (images.shape, images.dtype) == ((4_000, 3, 32, 32), np.uint8)
        assert (labels.shape, labels.dtype) == ((4_000,), np.int64)
        assert np.bincount(labels).tolist() == [400] * 10
        assert labels[:20].tolist() != sorted(labels[:20])
        assert 0.0005 < np.isin(images, (0, 255)).mean() < 0.02  # hardly clipped
        assert 120 < images.mean() < 136
        assert 40 < images.std() < 55


def test_synthetic_images_are_all_different(synthetic: Source) -> None:
    images = [image.tobytes() for image in (*synthetic.train_images, *synthetic.test_images)]
    assert len(set(images)) == 8_000


def test_synthetic_images_are_the_same_everywhere(synthetic: Source) -> None:
    """Labels exactly. Images to one grey level: a fused multiply-add of another processor may round a pixel otherwise."""
    labels = np.concatenate([synthetic.train_labels, synthetic.test_labels])
    assert hashlib.md5(labels.astype("<i8").tobytes()).hexdigest() == "fff1d8157084161af3cc36dceff2a7ac"
    assert synthetic.train_labels[:8].tolist() == [2, 7, 1, 3, 9, 3, 0, 0]
    shown = np.stack([synthetic.train_images[[0, 3_999], 1, ::10, 5], synthetic.test_images[[0, 3_999], 1, ::10, 5]])
    np.testing.assert_allclose(
        shown.astype(int).ravel(), [131, 134, 93, 97, 22, 117, 75, 50, 199, 146, 149, 151, 142, 44, 144, 134], atol=1
    )


def test_synthetic_md5s_name_the_arrays(synthetic: Source) -> None:
    assert synthetic.md5 == {
        "train": hashlib.md5(synthetic.train_images.tobytes()).hexdigest(),
        "test": hashlib.md5(synthetic.test_images.tobytes()).hexdigest(),
    }
    assert generate().md5 == synthetic.md5


def test_synthetic_classes_can_be_told_apart(synthetic: Source) -> None:
    """A nearest-mean rule learnt on 1,000 images generalises: train and test show the same templates."""
    images = synthetic.train_images[:1_000].reshape(1_000, -1) / 255
    means = np.stack([images[synthetic.train_labels[:1_000] == label].mean(0) for label in range(10)])
    test = synthetic.test_images[:1_000].reshape(1_000, -1) / 255
    nearest = ((test**2).sum(1)[:, None] - 2 * test @ means.T + (means**2).sum(1)).argmin(1)
    assert (nearest == synthetic.test_labels[:1_000]).mean() > 0.8
