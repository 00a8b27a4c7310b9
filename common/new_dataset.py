"""`python -m common.new_dataset NAME --from FOLDER`: a data set of one's own images, in a folder like `cifar10/`.

FOLDER has a folder of images for each class, or two folders `train` and `test` that have them. The command checks every image,
writes NAME/ with the scripts, two profiles whose numbers follow from the number and size of the images, and NAME/dataset.yaml
(common/data/own.py), and prints the next commands. The images stay where they are.
"""

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import ROOT, run_script
from common.config import require

if TYPE_CHECKING:  # imports PyTorch, for which --help does not wait
    from common.data.own import Description
    from common.data.sources import Source

TEMPLATE = "svhn"  # whose scripts are copied; they are the same files in every data set's folder
SIDES = (32, 64, 128, 256)  # of square images; a profile has the largest that the images are not smaller than
SAMPLE = 500  # images that mean, standard deviation and size are taken from

PROFILE = """\
# {name}, {purpose}
# Only the settings that differ from the defaults (the paper's values, common/config.py) are here. Written by
# python -m common.new_dataset; edit it as you like.
data:
  members: {members} # the training set of the classifier that is attacked
  reference: {members} # training images on which no target is trained
  non_members: {non_members}
  fit: {known} # the defender's points of each side, on which scenarios 1 and 2 fit their interval
  known: {known} # the attacker's points of each side
  scored: {scored} # the points of each side whose membership the attacker infers
  image_size: {side} # images are cut to squares and resized to this many pixels a side
"""
PAPER = """\
train:
  bf16: true # if the device computes in bfloat16 natively
ddpm:
  channels: {channels}
  attention: {attention} # the level that works at 16 x 16
  flip: true # false where a mirrored image has another class
  bf16: true
diffence:
  batch: {batch}
"""
SMALL = """\
model:
  width: 16 # a quarter of the published width
train:
  epochs: 30
  batch_size: 64
  bf16: true # if the processor computes in bfloat16 natively
ddpm:
  channels: {channels}
  layers: 1
  attention: []
  groups: 8
  dropout: 0.0
  steps: 2000
  batch_size: 64
  lr: 1.0e-3
  warmup: 100
  ema_decay: 0.995
  flip: true # false where a mirrored image has another class
  max_timestep: 160 # Diffence uses no later timestep
  bf16: true
  save_every: 100
diffence:
  n: 10
  js_bins: 50
attack:
  nn_epochs: 100
defenses:
  selena: {{k: 5, l: 2}}
  advreg: {{alpha: 1.0, attack_batches: 2, attack_lr: 1.0e-3}}
  dpsgd: {{groups: 4}} # of GroupNorm; Opacus's default has one channel in each group of a narrow network
  dpsgd-private: {{groups: 4, target_epsilon: 8.0}}
  dpsgd-strong: {{groups: 4, batch_size: 256, epochs: 30, lr: 4.0e-3, views: 2, ema_decay: 0.98}}
  memguard: {{epochs: 100, lr: 0.1, batch_size: 32}} # the published lr learns nothing from so few examples
"""
NEXT = """\
Next:
  python {name}/data_partition.py --profile small
  python {name}/train_defense.py --defense undefended --profile small
  python {name}/diff_defense/train_ddpm.py --profile small
  bash {name}/evaluate_MIAs/evaluate_mia.sh --defense undefended --profile small --scenario 1 2 3
or all of it with a second defense: bash all-train-all.sh --datasets {name} --profile small --defenses undefended hamp"""


def main(root: Path, arguments: Sequence[str]) -> None:
    """The command line. `root` is that of the repository."""
    parser = argparse.ArgumentParser(
        prog="python -m common.new_dataset", description="Make a data set of your own images.", allow_abbrev=False
    )
    parser.add_argument("name", help="of the data set and of its folder: small letters, digits and _")
    parser.add_argument(
        "--from", dest="images", type=Path, required=True, metavar="FOLDER", help="with a folder of images for each class"
    )
    parsed = parser.parse_args(arguments)
    name, target = parsed.name, root / parsed.name
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), f"'{name}' is no name: use small letters, digits and _.")
    require(not target.exists(), f"{target} exists already: choose another name, or delete it to make the data set again.")
    from common.data.own import image_folder, list_images

    images = parsed.images.resolve()
    classes = sorted(set(list_images(images).values()))
    require(
        len(classes) > 1,
        f"{images} has {len(classes)} folders with images, and a classifier needs at least two classes: name the folder that "
        "has a folder of images for each class.",
    )
    variable = next((text for text in (str(images), *classes) if "${" in text), None)
    require(variable is None, f"{variable}: rename it, since ${{ stands for a variable in dataset.yaml.")
    source = image_folder(images, classes)
    for reason, files in source.left_out.items():
        if files:
            print(f"left out: {len(files):,} files, such as {files[0]}: {reason}")
    counts = len(source.train_labels), len(source.test_labels)
    require(
        counts[0] >= 80 and counts[1] >= 40,
        f"{images} has {counts[0]} training and {counts[1]} test images, and a data set needs at least 80 and 40.",
    )
    description, side = describe(source, images, classes)
    write_folder(root, name, description, profiles(name, *counts, side))
    print(f"{target}: {counts[0]:,} training and {counts[1]:,} test images of {len(classes)} classes")
    print(NEXT.format(name=name))


def describe(source: "Source", images: Path, classes: list[str]) -> tuple["Description", int]:
    """What dataset.yaml says, and the side of square images, one of SIDES; from a sample of the training images."""
    import numpy as np

    from common.data.files import ImageFiles, pixels_of
    from common.data.own import Description

    assert isinstance(source.train_images, ImageFiles)
    chosen = np.random.default_rng(0).permutation(len(source.train_images))[:SAMPLE]
    contents = [(images / name).read_bytes() for name in source.train_images[chosen].names]
    shapes = [pixels_of(content).shape[1:] for content in contents]
    median = float(np.median([min(shape) for shape in shapes]))
    side = max([SIDES[0], *(side for side in SIDES if side <= median)])
    colours = np.stack([pixels_of(content, (SIDES[0], SIDES[0])) for content in contents]) / 255
    mean, std = colours.mean(axis=(0, 2, 3)).round(4), colours.std(axis=(0, 2, 3)).round(4).clip(min=0.01)
    size = list(shapes[0]) if len(set(shapes)) == 1 else [side, side]
    return Description(str(images), classes, mean.tolist(), std.tolist(), size), side


def profiles(name: str, train: int, test: int, side: int) -> dict[str, str]:
    """The text of each profile for so many training and test images."""

    def numbers(most: int) -> dict[str, int]:
        members, non_members = min(most, train // 2), min(most, test)
        evaluated = min(members, non_members)
        return {
            "members": members,
            "non_members": non_members,
            "known": min(1000, evaluated // 4),
            "scored": min(2000, evaluated // 2),
        }

    channels, levels = [128, *[256] * (side.bit_length() - 3)], side.bit_length() - 5  # the last level works at 4 x 4
    small = min(side, 64)
    texts = {
        "paper": (PROFILE + PAPER, "with the paper's networks and training. It wants a GPU.", numbers(25_000), side),
        "small": (PROFILE + SMALL, "on two CPU cores: few images, a narrow network.", numbers(2_000), small),
    }
    sizes = {"paper": channels, "small": [16, 32, 32] if small == 32 else [16, 32, 32, 32]}
    return {
        profile: text.format(
            name=name,
            purpose=purpose,
            side=pixels,
            channels=sizes[profile],
            attention=[levels],
            batch=max(1, 256 * 32**2 // side**2),
            **counts,
        )
        for profile, (text, purpose, counts, pixels) in texts.items()
    }


def write_folder(root: Path, name: str, description: "Description", texts: dict[str, str]) -> None:
    """Write NAME/: the scripts of TEMPLATE, dataset.yaml and the profiles. The folder appears once it is complete."""
    from omegaconf import OmegaConf

    from common.data.own import FILE

    partial = root / f".{name}.{os.getpid()}.partial"
    try:
        for pattern in ("*.py", "*/*.py", "*/*.sh"):
            for script in (root / TEMPLATE).glob(pattern):
                copy = partial / script.relative_to(root / TEMPLATE)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(script, copy)
        (partial / "configs").mkdir()
        for profile, text in texts.items():
            (partial / "configs" / f"{profile}.yaml").write_text(text)
        OmegaConf.save(OmegaConf.structured(description), partial / FILE)
        os.replace(partial, root / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    run_script(main, ROOT)
