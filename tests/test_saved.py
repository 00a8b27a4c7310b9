"""A protected classifier is saved and loaded with the same answers, without its key, and shared by threads."""

import copy
import json
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from plugged import SIZE, classifier, images, protected, unet
from torch import nn
from torchvision.transforms import Normalize

from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector
from common.diffence.sources import edm_model
from common.errors import UserError
from common.protect import protect

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript announces its end


@pytest.mark.parametrize("key", [None, b"0123456789abcdef"])
@pytest.mark.parametrize("kind", ["module", "normalised", "TorchScript"])
def test_answers_are_the_same_after_a_restart(tmp_path: Path, key: bytes | None, kind: str) -> None:
    net = classifier()
    source = torch.jit.trace(net, images(1)) if kind == "TorchScript" else net
    transform = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)) if kind == "normalised" else None
    made = protect(
        source, unet(), images(12, 1), images(12, 2), scenario="1", n=4, key=key, transform=transform, seed=0, device="cpu"
    )
    x = images(7, 3)
    made.save_pretrained(tmp_path)
    loaded = ProtectedClassifier.from_pretrained(tmp_path, key, device="cpu")
    answers = made(x)
    assert torch.equal(loaded(x), answers)
    assert torch.allclose(loaded(x[2:5]), answers[2:5], atol=1e-4) == (key is not None)  # else they are new queries
    assert loaded.selector == made.selector
    assert not torch.equal(answers, made.classifier(x))
    loaded.save_pretrained(tmp_path / "again")
    again = ProtectedClassifier.from_pretrained(tmp_path / "again", key, device="cpu")
    assert torch.equal(again(x), answers)


def test_nobody_can_guess_the_noise() -> None:
    """Without a key it is another one in each module, unless a seed is named. With a key it comes from the key alone."""

    def noise(**options: Any) -> torch.Tensor:
        reconstruct: Any = protect(classifier(), unet(), size=SIZE, n=1, device="cpu", **options).reconstruct
        return reconstruct.noise(torch.Size([3, *SIZE]), torch.arange(2), torch.zeros(2, dtype=torch.int64))

    assert not torch.equal(noise(), noise())
    assert torch.equal(noise(seed=0), noise(seed=0))
    assert torch.equal(noise(key=b"secret"), noise(key=b"secret"))


def test_the_key_is_in_no_file_and_no_text(tmp_path: Path) -> None:
    key = secrets.token_hex(16).encode()
    made = protected(key=key)
    made.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or (key not in path.read_bytes() and key.hex().encode() not in path.read_bytes()), path
    assert key.decode() not in repr(made)
    with pytest.raises(UserError, match="was saved with a key for stable answers: pass the same one"):
        ProtectedClassifier.from_pretrained(tmp_path, device="cpu")
    protected().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was saved without a key") as caught:
        ProtectedClassifier.from_pretrained(tmp_path, key, device="cpu")
    assert key.decode() not in str(caught.value)


class Branching(nn.Module):
    """torch.export cannot follow it, because its way depends on the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * (2 if images.sum() > 1 else 3)


class OneByOne(nn.Module):
    """torch.export follows it for one batch size alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.mean((1, 2)) for image in images])


def test_a_classifier_that_would_be_saved_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    made = protect(OneByOne(), unet(), size=SIZE, n=2, seed=0, device="cpu")
    with pytest.raises(UserError, match=r"torch.export cannot follow the classifier for batches of any size"):
        made.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, with_classifier=False)
    x = images(3)
    assert torch.equal(ProtectedClassifier.from_pretrained(tmp_path, classifier=OneByOne(), device="cpu")(x), made(x))


def test_what_cannot_be_saved_is_passed_again(tmp_path: Path) -> None:
    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return 0.9 * x

    made = protect(Branching(), edm_model(denoiser, 8), size=SIZE, n=2, seed=0, device="cpu")
    with pytest.raises(UserError, match=r"torch.export cannot follow the classifier .*with_classifier=False") as caught:
        made.save_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    made.save_pretrained(tmp_path, with_classifier=False)
    with pytest.raises(UserError, match="without its classifier"):
        ProtectedClassifier.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(UserError, match="without its diffusion model"):
        ProtectedClassifier.from_pretrained(tmp_path, classifier=Branching(), device="cpu")
    loaded = ProtectedClassifier.from_pretrained(tmp_path, classifier=Branching(), unet=edm_model(denoiser, 8), device="cpu")
    x = images(3)
    assert torch.equal(loaded(x), made(x))


def test_refusals_of_folders_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no protected classifier: make one with"):
        ProtectedClassifier.from_pretrained(tmp_path)
    protected().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "protected.json").read_text())
    (tmp_path / "protected.json").write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(UserError, match="was saved by another version: protect the classifier again"):
        ProtectedClassifier.from_pretrained(tmp_path)
    made = protect(classifier(), unet(), n=1, seed=0, device="cpu")
    with pytest.raises(UserError, match=r"images of one size: pass size=\(H, W\)"):
        made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="images must be 10 x 12, not 8 x 8"):
        protected()(images(1, size=(8, 8)))
    by_hand = ProtectedClassifier(classifier(), lambda x, queries, numbers: x, Selector("3"), size=SIZE)
    with pytest.raises(UserError, match="only a ProtectedClassifier around a DiffusionReconstructor"):
        by_hand.save_pretrained(tmp_path)


# Threads


def test_threads_share_one_numbering() -> None:
    """Every query has a number of its own, none is left out, and each answer is that of its number."""
    numbers: list[int] = []
    lock = threading.Lock()

    class Slow(nn.Module):
        """A reconstructor that notes the queries."""

        def forward(self, x: torch.Tensor, queries: torch.Tensor, numbers_: torch.Tensor) -> torch.Tensor:
            with lock:
                numbers.extend(queries.tolist())
            return x

    made = ProtectedClassifier(classifier(), Slow(), Selector("3"), n=1)
    x = images(3)

    def ask() -> None:
        for count in (1, 2, 3) * 40:
            made(x[:count])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8 * 40 * 6))
    assert made.served == len(numbers)
    assert copy.deepcopy(made).served == made.served
