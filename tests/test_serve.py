"""python -m common.serve: a line for each file, resumed after a kill, and refusals."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, refusal
from plugged import images, protected, write_images

from common.data.folder import list_images
from common.diffence.protect import ProtectedClassifier
from common.serve import __main__ as serve
from common.serve import predictions

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript announces its end


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made = protected()
    made.classes = ["ant", "bee", "cat"]
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in two folders, and two files that are none."""
    folder = tmp_path / "photos"
    write_images(folder / "a", images(5, 3))
    write_images(folder / "b", images(4, 4))
    (folder / "a" / "002b.png").write_bytes(b"no image")
    (folder / "b" / "zz.jpg").write_bytes((folder / "b" / "000.png").read_bytes()[:60])
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_serve_writes_a_line_for_each_file(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    answer = call(serve.main, saved, saved, "--images", photos, "--output", tmp_path / "p.csv", "--logits", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.out.endswith("p.csv: 9 predictions, 2 files that are no images\n")
    lines = read_csv(tmp_path / "p.csv")
    files = list_images(photos)
    assert [line["image"] for line in lines] == [path.relative_to(photos).as_posix() for path in files]
    x = torch.cat([images(5, 3), images(4, 4)])
    queries = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])  # of the files that are images
    expected = ProtectedClassifier.from_pretrained(saved, device="cpu")(x, queries)
    good = [line for line in lines if not line["error"]]
    logits = torch.tensor([[float(value) for value in line["logits"].split()] for line in good])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert [line["label"] for line in good] == [str(label) for label in expected.argmax(1).tolist()]
    assert [line["class"] for line in good] == [["ant", "bee", "cat"][int(line["label"])] for line in good]
    confidences = expected.softmax(1).amax(1).tolist()
    assert [float(line["confidence"]) for line in good] == pytest.approx(confidences, abs=1e-4)
    assert [line["error"] for line in lines if line["error"]] == [
        f"{photos / 'a' / '002b.png'} is damaged, or is no image.", f"{photos / 'b' / 'zz.jpg'} is damaged, or is no image."
    ]  # fmt: skip
    assert answer.err.count("is no image.\n") == 2


def test_a_killed_run_continues(saved: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (saved, "--images", photos, "--batch", 3, "--device", "cpu", "--output")
    assert call(serve.main, saved, *arguments, tmp_path / "whole.csv").code == 0
    predict_files, calls = predictions.predict_files, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return predict_files(*given)

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "predict_files", killed)
        assert call(serve.main, saved, *arguments, tmp_path / "cut.csv").code == 130
    with open(tmp_path / "cut.csv", "a") as file:
        file.write("b/000.png,1,b")  # as a kill within a line leaves it
    begun: list[int] = []

    def counted(protected: Any, files: Any, names: Any, positions: range, *rest: Any) -> Any:
        begun.append(positions.start)
        return predict_files(protected, files, names, positions, *rest)

    monkeypatch.setattr(predictions, "predict_files", counted)
    for _ in range(2):  # the second time nothing is left to do
        answer = call(serve.main, saved, *arguments, tmp_path / "cut.csv")
        assert answer.out.endswith("9 predictions, 2 files that are no images\n")
    assert begun == [6, 9]
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_serve_refuses_another_model_or_other_images(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    output = tmp_path / "p.csv"
    assert call(serve.main, saved, saved, "--images", photos, "--output", output, "--device", "cpu").code == 0
    answer = call(serve.main, saved, saved, "--images", photos / "a", "--output", output)
    assert "was made under other settings" in refusal(answer)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join([lines[0], *reversed(lines[1:])]))  # as a spreadsheet may sort them
    answer = call(serve.main, saved, saved, "--images", photos, "--output", output)
    assert "has lines of other images" in refusal(answer)
    answer = call(serve.main, saved, tmp_path, "--images", photos, "--output", output)
    assert "holds no protected classifier" in refusal(answer)


def test_serve_refuses_images_that_changed(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    """Under the same names, or with new ones among them."""
    output = tmp_path / "p.csv"
    arguments = (saved, "--images", photos, "--output", output, "--device", "cpu")
    assert call(serve.main, saved, *arguments).code == 0
    written = output.read_text()
    first, other = photos / "a" / "000.png", photos / "a" / "001.png"
    content, state = first.read_bytes(), first.stat()
    first.write_bytes(other.read_bytes())
    answer = call(serve.main, saved, *arguments)
    assert "was made under other settings (images, by name, size and time: " in refusal(answer)
    first.write_bytes(content)
    os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert call(serve.main, saved, *arguments).code == 0
    write_images(photos / "b", images(1), "new.png")
    assert "(files: 11 -> 12; images, by name, size and time: " in refusal(call(serve.main, saved, *arguments))
    assert output.read_text() == written


def test_serve_writes_names_that_are_not_utf8(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    name = b"caf\xe9.png"  # in Latin-1
    for folder in (photos / "a", photos / "b"):
        (folder / "001.png").rename(folder / os.fsdecode(name))
    for _ in range(2):  # and reads them again
        answer = call(serve.main, saved, saved, "--images", photos, "--output", tmp_path / "p.csv", "--device", "cpu")
        assert answer.code == 0, answer.err
    lines = (tmp_path / "p.csv").read_bytes().splitlines()
    assert sum(line.startswith((b"a/" + name, b"b/" + name)) for line in lines) == 2


def test_serve_with_a_key_from_a_file(photos: Path, tmp_path: Path, call: Call) -> None:
    protected(key=b"secret key").save_pretrained(tmp_path / "keyed")
    (tmp_path / "key").write_bytes(b"secret key")
    arguments = (tmp_path / "keyed", "--images", photos / "b", "--output", tmp_path / "p.csv", "--device", "cpu", "--logits")
    assert "was saved with a key" in refusal(call(serve.main, photos, *arguments))
    assert "cannot be read" in refusal(call(serve.main, photos, *arguments, "--key-file", tmp_path / "absent"))
    answer = call(serve.main, photos, *arguments, "--key-file", tmp_path / "key")
    assert answer.code == 0, answer.err
    expected = protected(key=b"secret key")(images(4, 4))
    lines = [line for line in read_csv(tmp_path / "p.csv") if not line["error"]]
    found = torch.tensor([[float(value) for value in line["logits"].split()] for line in lines])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    (tmp_path / "long").write_bytes(bytes(65))
    assert "must hold a key of 1 to 64 bytes, not 65" in refusal(
        call(serve.main, photos, *arguments, "--key-file", tmp_path / "long")
    )
    (tmp_path / "other").write_bytes(b"secret kez")
    answer = call(serve.main, photos, *arguments, "--key-file", tmp_path / "other")
    assert "was made under other settings (key: " in refusal(answer)
    written = (tmp_path / "p.csv").read_text() + (tmp_path / "p.csv.json").read_text() + answer.out + answer.err
    assert "secret" not in written
    assert json.loads((tmp_path / "keyed" / "protected.json").read_text())["settings"]["stable"] is True
