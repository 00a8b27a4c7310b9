"""The one epoch loop. A defense says what a batch is and what to minimise (an Objective); `fit` does the rest.

The randomness of epoch e depends on (seed, e) alone, so a run that is killed and started again draws the same batches and
the same dropout, and ends with the same weights, bit for bit on the CPU.
"""

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.config import Train
from common.data.partition import Examples
from common.errors import UserError
from common.files import atomic_write, derive_seed, load_checkpoint, refuse_other_config, save_checkpoint
from common.run import native_bf16


class Stateful(Protocol):
    """What a checkpoint keeps: modules and optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Objective:
    """Plain training: shuffled batches, cross-entropy, Adam. Defenses override what they change.

    `model` maps images [B, 3, H, W] in [0, 1] to logits [B, C]; `members` is its training set, resident on `device`.
    """

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.members = members.to(device)
        self.optimizer: torch.optim.Optimizer = adam(self.model, config)

    def batches(self) -> Iterable[torch.Tensor]:
        """Index tensors [b] into the members, one a batch, covering an epoch; drawn from the global generator."""
        return torch.randperm(len(self.members)).split(self.config.batch_size)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Scalar to minimise; `index` [b] says which members these are, `epoch` counts from 0."""
        return F.cross_entropy(logits, labels)

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, int]:
        """Train on one batch; returns its loss and the number of members it classified correctly."""
        index = index.to(self.device)
        labels = self.members.labels[index]
        logits = self.forward(self.members.pixels(index))
        loss = self.loss(logits, labels, index, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [b, C] in float32, computed in bfloat16 where the config says so and the device can."""
        with autocast(self.device, self.config.bf16):
            return self.model(images).float()

    def stateful(self) -> dict[str, Stateful]:
        """All that a resumed run must restore."""
        return {"model": self.model, "optimizer": self.optimizer}

    def facts(self) -> dict[str, Any]:
        """Plain numbers and words about the training that every result must name, such as DP-SGD's epsilon."""
        return {}


def adam(model: nn.Module, config: Train) -> torch.optim.Adam:
    """The paper's optimiser (Section IV-A), amsgrad as in the released code."""
    return torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay, amsgrad=config.amsgrad)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 where `enabled` and native; elsewhere it would be emulated, slower than float32, and nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native_bf16(device))


def fit(
    objective: Objective, path: Path, settings: dict[str, Any], seed: int, remake: str, test: Examples | None = None
) -> dict[str, Any]:
    """Train `objective` for its epochs and write the last model to `path`, or continue where a killed run was.

    `settings` (plain dict) goes into the checkpoint; a checkpoint made under others is refused. With `test`, the epoch
    with the best accuracy on it is kept as `<path>.best.pt`, as the released code does (paper Appendix E). A log with one
    line an epoch lies beside. Returns the checkpoint.
    """
    if path.is_file():
        done = load_checkpoint(path, remake)
        refuse_other_config(path, done.get("settings"), settings, f"move it away, then run: {remake}")
        _restore({"model": objective.model}, done, path, remake)
        return done
    resume = path.with_suffix(".resume.pt")
    history: list[dict[str, float]] = []
    if resume.is_file():
        saved = load_checkpoint(resume, remake)
        refuse_other_config(resume, saved.get("settings"), settings, f"delete it, then run: {remake}")
        _restore(objective.stateful(), saved, resume, remake)
        history = saved["history"]
    epochs = objective.config.epochs
    with tqdm(total=epochs, initial=len(history), desc=path.stem, unit="epoch", smoothing=0.1, disable=None) as progress:
        for epoch in range(len(history), epochs):
            history.append(_epoch(objective, epoch, seed, test))
            if test is not None and history[-1]["test_accuracy"] > max(
                (row["test_accuracy"] for row in history[:-1]), default=-1.0
            ):
                save_checkpoint(path.with_suffix(".best.pt"), _finished(objective, settings, history))
            log = pd.DataFrame(history).to_csv(index=False).encode()
            atomic_write(path.with_suffix(".log.csv"), lambda file, log=log: file.write(log))  # type: ignore[misc]
            # Last: once it is there, this epoch is not run again.
            state = {name: part.state_dict() for name, part in objective.stateful().items()}
            save_checkpoint(resume, {**state, "settings": settings, "history": history})
            progress.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in history[-1].items() if k not in ("epoch", "seconds")))
            progress.update()
    finished = _finished(objective, settings, history)
    save_checkpoint(path, finished)
    resume.unlink()
    return finished


def _restore(parts: dict[str, Stateful], saved: dict[str, Any], path: Path, remake: str) -> None:
    """Load a checkpoint's content into its modules and optimizers."""
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError) as error:  # torch: RuntimeError for a module, ValueError for an optimizer
        raise UserError(f"{path} holds another architecture. Delete it and run: {remake}") from error


def _finished(objective: Objective, settings: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(objective.model.state_dict()),
        "settings": settings,
        "history": list(history),
        "facts": objective.facts(),
    }


def _epoch(objective: Objective, epoch: int, seed: int, test: Examples | None) -> dict[str, float]:
    """One pass over the batches; returns the line of the log."""
    torch.manual_seed(derive_seed("epoch", seed, epoch))  # seeds every device
    started = time.perf_counter()
    objective.model.train()
    loss, correct, seen = 0.0, 0, 0
    for index in objective.batches():
        batch_loss, batch_correct = objective.step(index, epoch)
        loss, correct, seen = loss + batch_loss * len(index), correct + batch_correct, seen + len(index)
    row = {"epoch": epoch + 1, "loss": loss / max(seen, 1), "train_accuracy": correct / max(seen, 1)}
    if test is not None:
        row["test_accuracy"] = accuracy(objective.model, test, objective.device)
    return {**row, "seconds": time.perf_counter() - started}


@torch.inference_mode()
def predict(model: nn.Module, examples: Examples, device: torch.device, batch: int = 500) -> torch.Tensor:
    """Logits [n, C] float32 of the images, in evaluation mode, on the CPU."""
    model = model.to(device).eval()
    parts = [model(examples.take(slice(i, i + batch)).to(device).pixels(slice(None))) for i in range(0, len(examples), batch)]
    return torch.cat(parts).float().cpu()


def accuracy(model: nn.Module, examples: Examples, device: torch.device) -> float:
    """Fraction of the images classified correctly."""
    return float((predict(model, examples, device).argmax(1) == examples.labels.cpu()).float().mean())
