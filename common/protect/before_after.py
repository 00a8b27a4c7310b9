"""The main path of `python -m common.protect`: images -> logits -> interval -> protected classifier -> two audits."""

import argparse
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torchvision.transforms import Normalize

from common.audit.audit import audit, check_fractions, draw_pools, read_pictures
from common.audit.page import render
from common.data.folder import class_names, list_images, read_image
from common.diffence.classifiers import load_classifier, normalised, save_classifier
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import ORIGINAL, Selector, fit_selector
from common.errors import UserError
from common.files import make_folder, write_arrays, write_json, write_text
from common.pair import SIDES, Pair
from common.protect.answers import Answers, LabelledFiles, collect
from common.protect.plug import load_reconstructor, probe, secret_seed
from common.run import pick_device
from common.seeds import derive_seed

MAX_FIT, MAX_AUDIT = 1000, 3000  # images a side by default, as in the paper: fit, and known + scored
WITHOUT, WITH = "Without Diffence", "With Diffence"


def protect_and_audit(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Fit, save and audit. `options` are those of the command line. Returns the rows of both audits, and sentences about them.

    Raises UserError, in one sentence, for what does not fit. The quick checks come before anything slow.
    """
    check_fractions(options.known_fraction, options.fpr)
    folders = Pair(options.members, options.non_members)
    names = class_names(folders.members)
    if folders.members.resolve() == folders.non_members.resolve():
        raise UserError(f"{folders.members} is named for both sides: name images never trained on as --non-members.")
    sides = folders.map(lambda folder, side: draw_files(folder, names, side, options.seed), Pair(*SIDES))
    fewest = min(sides.map(lambda side: len(side.files)))
    fit = options.fit if options.fit is not None else min(MAX_FIT, fewest // 3)
    if fit >= fewest > 0:
        raise UserError(f"--fit {fit} leaves nothing to audit of {fewest} images: take a smaller number.")
    audited = options.audit if options.audit is not None else MAX_AUDIT
    sides = sides.map(lambda side: LabelledFiles(side.files[: fit + audited], side.labels[: fit + audited]))
    least = 1 if options.scenario in ("1", "2") else 0  # the others fit nothing
    if fit < least:
        raise UserError(f"--fit must be at least {least}, not {fit}: {len(sides.members.files)} members are too few.")
    draw_pools(sides.map(lambda side: len(side.files) - fit), options.known_fraction, options.seed)  # raises for too few
    make_folder(options.out)
    protected, device = load_parts(options, sides.members.files)
    classes = probe(protected, device)
    if classes != len(names):
        raise UserError(
            f"{folders.members} has {len(names)} folders and the classifier {classes} outputs: make a folder for each class, "
            "whose names are in the order of the outputs, empty where there are no images."
        )
    with TemporaryDirectory() as trial:  # raises for a classifier that cannot be saved, which would else be seen after hours
        save_classifier(protected.classifier, Path(trial), protected.size or (0, 0))
    protected.classes = names
    answers = sides.map(lambda files, side: collect(protected, files, side, options, device), Pair(*SIDES))
    of_fit = answers.map(lambda side: side.take(slice(fit)).logits)
    protected.selector = selector = fit_selector(options.scenario, of_fit)
    reconstruct: Any = protected.reconstruct
    reconstruct.seed = secret_seed()  # everybody can guess that of the audit
    protected.save_pretrained(options.out)
    rest = answers.map(lambda side: side.take(slice(fit, None)))
    released = {
        WITHOUT: rest.map(attrgetter("original")),
        WITH: rest.map(lambda side: selector.release(side.candidates, side.original)),
    }
    labels = rest.map(attrgetter("labels"))
    rows = {name: audit_one(logits, labels, options, name) for name, logits in released.items()}
    sentences = describe(options, selector, rest, released[WITH], fit)
    pictures = {name: read_pictures(options.out / folder_of(name)) for name in rows}
    write_json(options.out / "audit.json", {"sentences": sentences, "audits": rows})
    write_text(options.out / "audit.html", render(rows, pictures, sentences))
    return rows, sentences


def draw_files(folder: Path, names: list[str], side: str, seed: int) -> LabelledFiles:
    """The image files of a side and their classes, in random order. Raises UserError for a class that the members lack."""
    unknown = sorted(set(class_names(folder)) - set(names))
    if unknown:
        raise UserError(f"{folder} has a folder {unknown[0]}, which the members' folder lacks: both need the same classes.")
    classes = {path: path.relative_to(folder).parts[0] for path in list_images(folder)}
    files = [path for path, name in classes.items() if name in names]  # hidden folders are none, such as those of thumbnails
    labels = np.array([names.index(classes[path]) for path in files], dtype=np.int64)
    order = np.random.default_rng(derive_seed("protect", side, seed)).permutation(len(files))
    return LabelledFiles([files[i] for i in order], labels[order])


def load_parts(options: argparse.Namespace, files: list[Path]) -> tuple[ProtectedClassifier, torch.device]:
    """The classifier and the diffusion model around each other, without an interval yet. The size may be that of the files."""
    device = pick_device(options.device)
    if (options.mean is None) != (options.std is None):
        raise UserError("--mean and --std belong together: name both, or neither.")
    if options.size is not None and len(options.size) > 2:
        raise UserError("--size takes H = W, or H and W.")
    transform = None if options.mean is None else Normalize(options.mean, options.std)
    net = normalised(load_classifier(options.classifier, device), transform).to(device)
    reconstruct = load_reconstructor(options.unet, options.t, options.seed, device, options.unet_size)
    size = options.size or size_of_first(files)
    selector = Selector(options.scenario)
    return ProtectedClassifier(net, reconstruct, selector, options.n, batch=options.batch, size=(size[0], size[-1])), device


def size_of_first(files: list[Path]) -> tuple[int, int]:
    """(H, W) of the first file that is an image. Raises UserError where none is."""
    for path in files:
        with suppress(UserError):  # which is shown when the file is read again
            height, width = read_image(path).shape[-2:]
            return height, width
    raise UserError(f"none of {len(files)} members, such as {files[0]}, is an image: name a folder of image files.")


def audit_one(logits: Pair[np.ndarray], labels: Pair[np.ndarray], options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Write the outputs, audit them, and return the row."""
    folder = options.out / folder_of(name)
    files = {side: folder / f"{side}.npz" for side in SIDES}
    for path, values, truth in zip(files.values(), logits, labels, strict=True):
        write_arrays(path, {}, logits=values, labels=truth)
    return audit(files, options.known_fraction, options.fpr, options.seed, folder)


def folder_of(name: str) -> str:
    """The folder of an audit in --out."""
    return {WITHOUT: "before", WITH: "after"}[name]


def describe(
    options: argparse.Namespace, selector: Selector, rest: Pair[Answers], released: Pair[np.ndarray], fit: int
) -> list[str]:
    """What was done, and what it does to the audited images, in sentences."""
    labels = rest.map(lambda side: side.original.argmax(1))
    changed = sum(rest.map(lambda _, after, before: int((after.argmax(1) != before).sum()), released, labels))
    unmatched = rest.map(lambda side, label: int((selector.choose(side.candidates, label) == ORIGINAL).sum()), labels)
    draws = rest.map(lambda side, label: float(selector.draws(side.candidates, label).mean()), labels)
    sentences = [
        f"Diffence in scenario {selector.scenario} with T = {options.t} and N = {options.n}. It changed the predicted label of "
        f"{changed:,} of {sum(rest.map(lambda side: len(side.labels))):,} audited images.",
        f"An answer takes {draws.members:.1f} reconstructions for a member and {draws.non_members:.1f} for a non-member, on "
        "average, when they are drawn one by one.",
    ]
    if np.isfinite(selector.low):
        fitted_on = "members" if selector.scenario == "2" else "images of each side"
        sentences.append(
            f"The interval of phi, {selector.low:.3f} to {selector.high:.3f}, was fitted on {fit:,} other {fitted_on}."
        )
    if selector.scenario != "average":
        sentences.append(
            f"No reconstruction kept the label of {unmatched.members:,} members and {unmatched.non_members:,} non-members; "
            "their original predictions are released."
        )
    return sentences
