"""The paper's two data sets of faces, CelebA and UTKFace (Section IV-A, Figure 8).

The classes of CelebA are the combinations of three attributes. The paper does not name them. It follows ML-Doctor (Liu et al.,
USENIX Security 2022), whose code has the ATTRIBUTES below. The classes of UTKFace are its four largest races. Neither data set
is downloaded, because their owners ask for agreement to their terms. The images are files, see common/data/files.py.
"""

import re
from pathlib import Path

import numpy as np
import torch

from common.data.files import ImageFiles
from common.data.sources import Source, is_test_image, source_of_files
from common.errors import UserError

ATTRIBUTES = ("Heavy_Makeup", "Mouth_Slightly_Open", "Smiling")
RACES = ("White", "Black", "Asian", "Indian", "Others")  # the third number of UTKFace's file names counts them from 0
UTKFACE_NAME = re.compile(r"(?P<age>\d+)_(?P<gender>[01])_(?P<race>[0-4])_\d+\.jpg(\.chip\.jpg)?")


def celeba(root: Path) -> Source:
    """CelebA: 162,770 + 19,962 images of 218 x 178 pixels, 8 classes.

    Class 0..7 is the sum of 1, 2 and 4 for the attributes of ATTRIBUTES that an image has. Training images are those of the
    official training set and test images those of the official test set; the validation set is not used.
    """
    from torchvision.datasets import CelebA

    folder, images = root / CelebA.base_folder, root / CelebA.base_folder / "img_align_celeba"
    remedy = (
        f"{folder} needs the five official .txt files and the folder img_align_celeba with 202,599 JPEG files, from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; put them there, or name the folder above with --root DIR or "
        "DIFFENCE_DATA."
    )
    try:
        sets = [CelebA(str(root), split=split, target_type="attr", download=False) for split in ("train", "test")]
        columns = [sets[0].attr_names.index(name) for name in ATTRIBUTES]
    except Exception as error:  # torchvision: RuntimeError where a file is missing or its md5 differs, others for its content
        raise UserError(f"the CelebA files are not all there, or are not the official ones: {remedy}") from error
    names = [name for part in sets for name in part.filename]
    present = {path.name for path in images.iterdir()}
    absent = [name for name in names if name not in present]
    if absent:
        raise UserError(f"{len(absent):,} CelebA images such as {absent[0]} are missing: {remedy}")
    attributes = torch.cat([part.attr for part in sets]).numpy()[:, columns]
    is_test = np.repeat([False, True], [len(part) for part in sets])
    source = source_of_files(ImageFiles(images, names), attributes @ np.array([1, 2, 4]), is_test)
    source.md5.update({name: md5 for _, md5, name in CelebA.file_list if name.endswith(".txt")})
    return source


def utkface(root: Path) -> Source:
    """UTKFace: about 22,000 aligned and cropped faces of 200 x 200 pixels, 4 classes in the order of RACES.

    A name is age_gender_race_time.jpg.chip.jpg. Files of another name, three of the official ones among them, are left out, and
    so is the race "Others". There is no official test set: `is_test_image` splits the images into halves.
    """
    folder = root / "UTKFace"
    files = sorted(path.name for path in folder.glob("*.jpg")) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"{folder} needs the 23,708 aligned and cropped faces of UTKFace: get UTKFace.tar.gz from "
            "https://susanqq.github.io/UTKFace, unpack it there, or name the folder above with --root DIR or DIFFENCE_DATA."
        )
    matches = {name: UTKFACE_NAME.fullmatch(name) for name in files}
    races = {name: int(match["race"]) for name, match in matches.items() if match}
    others = RACES.index("Others")
    names = [name for name, race in races.items() if race != others]
    labels = np.array([races[name] for name in names], dtype=np.int64)
    source = source_of_files(ImageFiles(folder, names), labels, np.array([is_test_image(name) for name in names], dtype=bool))
    source.left_out["name is not age_gender_race_time.jpg"] = [name for name, match in matches.items() if not match]
    source.left_out["race Others"] = [name for name, race in races.items() if race == others]
    return source
