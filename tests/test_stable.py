"""A stable service: an image has one answer, which only its key tells beforehand, with the law of any other answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run, write_profile
from scipy.stats import ks_2samp
from torch import nn

from common.config import DDPM
from common.diffence import protect
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionReconstructor
from common.diffence.select import Selector
from common.errors import UserError
from common.metrics.privacy import phi
from common.seeds import image_keys

N = 4
SELECTORS = [Selector("1", 0.5, 2.0), Selector("3"), Selector("average")]


def images(count: int, seed: int) -> torch.Tensor:
    """8-bit images [count, 3, 16, 16] as floats in [0, 1]."""
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).float() / 255


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, DiffusionReconstructor]:
    """A linear classifier and a reconstructor with a tiny UNet."""
    torch.manual_seed(0)
    reconstruct = DiffusionReconstructor(build_unet(DDPM(channels=[8, 8], layers=1, attention=[], groups=4)))
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)), reconstruct


def serve(
    parts: tuple[nn.Module, DiffusionReconstructor], selector: Selector, key: bytes | None = b"secret"
) -> ProtectedClassifier:
    return ProtectedClassifier(*parts, selector, N, key=key)


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: selector.scenario)
def test_one_image_has_one_answer(parts: tuple[nn.Module, DiffusionReconstructor], selector: Selector) -> None:
    x = images(12, 1)
    stable = serve(parts, selector)
    first = stable(x)
    assert torch.equal(stable(x), first)
    assert torch.equal(serve(parts, selector)(x), first)  # after a restart
    assert not torch.equal(first, parts[0](x))
    for batch in (torch.arange(12).flip(0), torch.tensor([3]), torch.tensor([5, 5, 9])):
        torch.testing.assert_close(stable(x[batch]), first[batch], atol=1e-4, rtol=0)
    eager = ProtectedClassifier(*parts, selector, N, draws=3, batch=7, key=b"secret")
    torch.testing.assert_close(eager(x), first, atol=1e-4, rtol=0)
    assert stable.served == 0


@pytest.mark.parametrize("key", [b"Secret", b"secret\0", bytes(64)])
def test_another_key_another_answer(parts: tuple[nn.Module, DiffusionReconstructor], key: bytes) -> None:
    x, average = images(12, 1), Selector("average")
    moved = (serve(parts, average, key)(x) - serve(parts, average)(x)).abs().amax(1)
    assert (moved > 0.01).all()


def test_without_a_key_answers_differ(parts: tuple[nn.Module, DiffusionReconstructor]) -> None:
    x = images(12, 1)
    plain = serve(parts, Selector("average"), key=None)
    assert ((plain(x) - plain(x)).abs().amax(1) > 0.01).all()


def test_a_caller_may_still_name_queries(parts: tuple[nn.Module, DiffusionReconstructor]) -> None:
    x, average = images(3, 1), Selector("average")
    named = serve(parts, average)(x, torch.arange(3))
    assert torch.equal(named, serve(parts, average, key=None)(x))


def test_what_counts_as_the_same_image(parts: tuple[nn.Module, DiffusionReconstructor]) -> None:
    """Jitter below half a grey level meets the same noise; one grey level in one pixel fresh noise."""
    x, average = images(12, 1), Selector("average")
    stable = serve(parts, average)
    first = stable(x)
    jitter = (x + 0.4 / 255 * torch.where(x > 0.5, -1, 1)).clamp(0, 1)
    touched = x.clone()
    touched[:, 0, 7, 7] += torch.where(x[:, 0, 7, 7] > 0.5, -1, 1) / 255
    assert torch.equal(image_keys(jitter, b"secret"), image_keys(x, b"secret"))
    assert (image_keys(touched, b"secret") != image_keys(x, b"secret")).all()
    noise = (stable(touched) - first).abs().amax(1)
    assert (noise > 0.01).all()
    assert (parts[0](touched) - parts[0](x)).abs().max() < 0.002  # the classifier alone sees the same image
    assert ((stable(jitter) - first).abs().amax(1) < noise / 2).all()


@pytest.mark.parametrize("selector", SELECTORS[:2], ids=lambda selector: selector.scenario)
def test_the_law_of_answers_is_unchanged(parts: tuple[nn.Module, DiffusionReconstructor], selector: Selector) -> None:
    """300 stable answers about images that only their last bits tell apart, beside 300 answers about one of them."""
    one = images(1, 4)
    bits = torch.randint(0, 2, (300, 3, 1, 4), generator=torch.Generator().manual_seed(5)) / 255
    near = one.repeat(300, 1, 1, 1)
    near[:, :, :1, :4] = (near[:, :, :1, :4] - bits).clamp(0, 1)
    stable, plain = serve(parts, selector), serve(parts, selector, key=None)
    answers = stable(near), plain(one.expand(300, -1, -1, -1))
    assert len(image_keys(near).unique()) > 250
    values = [phi(part.numpy()) for part in answers]
    assert min(len(np.unique(part.round(3))) for part in values) > 100
    assert ks_2samp(*values).pvalue > 0.01
    assert int(stable.drawn.sum()) == pytest.approx(int(plain.drawn.sum()), rel=0.1)


@pytest.mark.parametrize("selector", SELECTORS[:2], ids=lambda selector: selector.scenario)
def test_labels_are_those_of_the_bare_classifier(parts: tuple[nn.Module, DiffusionReconstructor], selector: Selector) -> None:
    x = images(200, 6)
    bare = parts[0](x).argmax(1)
    assert torch.equal(serve(parts, selector)(x).argmax(1), bare)
    assert len(bare.unique()) >= 3


# Keys


def test_image_keys_are_query_numbers() -> None:
    keys = image_keys(images(500, 7), b"secret")
    assert keys.dtype == torch.int64
    assert (keys >= 0).all()
    assert keys.max() > 2**62  # 63 bits are used
    assert len(keys.unique()) == 500
    assert len(image_keys(images(0, 7))) == 0


@pytest.mark.parametrize("key", [bytes(1), bytes(64)])
def test_keys_have_1_to_64_bytes(parts: tuple[nn.Module, DiffusionReconstructor], key: bytes) -> None:
    assert serve(parts, Selector("3"), key).key == key


@pytest.mark.parametrize("key", [b"", bytes(65)])
def test_refuses_keys_without_content_or_too_long(parts: tuple[nn.Module, DiffusionReconstructor], key: bytes) -> None:
    with pytest.raises(UserError, match=f"must have 1 to 64 bytes, not {len(key)}"):
        serve(parts, Selector("3"), key)
    with pytest.raises(UserError, match=r"must be bytes, .* not of type str"):
        serve(parts, Selector("3"), "password")  # type: ignore[arg-type]


def test_the_config_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`diffence.stable` gives the key of the run's seed."""
    monkeypatch.setattr(protect, "load_reconstructor", lambda run: nn.Identity())
    profile, keys = write_profile(tmp_path / "tiny.yaml"), []
    for seed, stable in ((0, "false"), (0, "true"), (0, "true"), (1, "true")):
        run = tiny_run(ROOT / "synthetic", profile, f"diffence.stable={stable}", seed=seed)
        keys.append(protect.load_protected(run, nn.Identity(), Selector("3")).key)
    assert keys[0] is None
    assert keys[1] == keys[2] != keys[3]
    assert keys[3] is not None


def test_what_is_loaded_serves_as_the_config_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reconstruct, classifier, selector = nn.Identity(), nn.Identity(), Selector("1", 2.0, 3.0)
    monkeypatch.setattr(protect, "load_reconstructor", lambda run: {3: reconstruct}[run.seed])
    profile = write_profile(tmp_path / "tiny.yaml", "diffence.n=7", "diffence.batch=20")
    loaded = protect.load_protected(tiny_run(ROOT / "synthetic", profile, seed=3), classifier, selector)
    assert (loaded.classifier, loaded.reconstruct, loaded.selector) == (classifier, reconstruct, selector)
    assert (loaded.n, loaded.draws, loaded.batch, loaded.key) == (7, 1, 20, None)
