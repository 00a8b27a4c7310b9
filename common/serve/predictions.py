"""The CSV file of `python -m common.serve`: written line by line, continued where it ends."""

import csv
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.data.folder import list_images, read_image
from common.diffence.protect import ProtectedClassifier
from common.diffence.saved import SETTINGS, read_settings
from common.errors import UserError
from common.files import read_json, refuse_other_config, sha256, write_json, write_text
from common.run import pick_device

COLUMNS = ["image", "label", "class", "confidence", "error", "logits"]
ERROR = COLUMNS.index("error")
ANY_NAME = "surrogateescape"  # how a file name that is not UTF-8 is written as it is, and read again


def predict_folder(
    folder: Path, images: Path, output: Path, key_file: Path | None, with_logits: bool, batch: int, device: str
) -> dict[str, int]:
    """Write the predictions of the protected classifier in `folder` for the files in `images` to the CSV file `output`.

    Files that have a line already are skipped. Returns how many lines are predictions (`predicted`) and how many are files that
    are no images (`bad`). Raises UserError where `output` was made by another protected classifier, with another key, or of
    other images. Nothing is written before everything is loaded, so that a call that is refused leaves no file.
    """
    if batch < 1:
        raise UserError(f"--batch must be at least 1, not {batch}.")
    read_settings(folder)  # raises where there is none
    files = list_images(images)
    names = [path.relative_to(images).as_posix() for path in files]
    key = read_key(key_file) if key_file else None
    settings = {
        "protected": sha256(folder / SETTINGS),
        "images": str(images.resolve()),
        "files": len(files),
        "images, by name, size and time": digest_of_states(names, files),
        "key": check_value(key) if key else None,
        "logits": with_logits,
    }
    beside = output.with_name(f"{output.name}.json")
    if output.is_file():
        stored = read_json(beside, "move the CSV file away, and start again")
        refuse_other_config(output, stored, settings, "move it away, or name another --output.")
    lines = finished_lines(output)[1:]
    if [line[0] for line in lines] != names[: len(lines)]:
        raise UserError(f"{output} has lines of other images than {images} holds: move it away, or name another --output.")
    bad = sum(bool(line[ERROR]) for line in lines)
    if len(lines) < len(files):
        place = pick_device(device)
        protected = ProtectedClassifier.from_pretrained(folder, key, device=device)
        if not output.is_file():
            write_json(beside, settings)
            write_text(output, as_csv([COLUMNS]))
        bar = tqdm(total=len(files), initial=len(lines), unit="image", disable=None)
        with open(output, "a", encoding="utf-8", errors=ANY_NAME) as file, bar as progress:
            for start in range(len(lines), len(files), batch):
                positions = range(start, min(start + batch, len(files)))
                rows = predict_files(protected, files, names, positions, place, with_logits)
                file.write(as_csv(rows))
                file.flush()
                bad += sum(bool(row[ERROR]) for row in rows)
                progress.update(len(rows))
    return {"predicted": len(files) - bad, "bad": bad}


def predict_files(
    protected: ProtectedClassifier,
    files: list[Path],
    names: list[str],
    positions: range,
    device: torch.device,
    with_logits: bool,
) -> list[list[Any]]:
    """The lines of the files at `positions`, in their order. Images of one size are predicted together."""
    rows: dict[int, list[Any]] = {}
    by_size: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
    for position in positions:
        try:
            image = read_image(files[position], protected.size)
            by_size.setdefault(image.shape, []).append((position, image))
        except UserError as error:
            tqdm.write(str(error), file=sys.stderr)
            rows[position] = [names[position], "", "", "", str(error), ""]
    for group in by_size.values():
        numbers = torch.tensor([position for position, _ in group])
        queries = None if protected.key else numbers
        logits = protected(torch.stack([image for _, image in group]).to(device), queries).cpu()
        for position, row in zip(numbers.tolist(), logits, strict=True):
            label = int(row.argmax())
            name = protected.classes[label] if protected.classes else ""
            confidence = f"{row.softmax(0)[label].item():.6f}"
            rows[position] = [
                names[position],
                label,
                name,
                confidence,
                "",
                " ".join(map(str, row.tolist())) if with_logits else "",
            ]
    return [rows[position] for position in positions]


def finished_lines(path: Path) -> list[list[str]]:
    """The whole lines of a CSV file. What a killed run left of its last line is cut off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    return list(csv.reader(io.StringIO(whole.decode(errors=ANY_NAME))))


def read_key(path: Path) -> bytes:
    """The content of a key file. Raises UserError where it cannot be read or is no key; the message never shows the key."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the file with the key.") from error
    if not 1 <= len(key) <= 64:
        raise UserError(f"{path} must hold a key of 1 to 64 bytes, not {len(key)}.")
    return key


def check_value(key: bytes) -> str:
    """What tells two keys apart, except one in 65,536 pairs. It is so short because it may help somebody who guesses keys."""
    return hashlib.blake2b(b"common.serve", key=key, digest_size=2).hexdigest()


def digest_of_states(names: list[str], files: list[Path]) -> str:
    """A digest of the names, sizes and times of files, hexadecimal. It changes where an image is overwritten by another."""
    states = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in zip(names, files, strict=True)]
    return hashlib.blake2b(json.dumps(states).encode(), digest_size=8).hexdigest()


def as_csv(rows: list[list[Any]]) -> str:
    """Lines of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
