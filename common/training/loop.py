"""The one training loop. A defense says what a batch is and what to minimise (an `Objective`); `fit` does the rest.

The random numbers of epoch e depend on (seed, e) alone. A training that is killed and started again therefore draws the same
batches and the same dropout, and ends with the same weights: bit for bit on the CPU.
"""

import copy
import time
from collections.abc import Iterable
from functools import cached_property
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
from common.files import load_checkpoint, read_json, refuse_other_config, save_checkpoint, write_json, write_text
from common.run import native_bf16
from common.seeds import derive_seed
from common.training.distributed import (
    count,
    hide_progress,
    is_first,
    mean_over_processes,
    parallel,
    part_of,
    wait_for_all,
)
from common.training.pace import Pace


class Stateful(Protocol):
    """What a checkpoint can hold: modules and optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Objective:
    """Plain training: shuffled batches, cross-entropy, Adam. A defense overrides what it changes.

    `model` maps images [B, 3, H, W] in [0, 1] to logits [B, C]. `members` is its training set; all of it lies on `device`.
    """

    # Whether several processes (training/distributed.py) may share a batch: its loss must be a mean over images, with no more
    # to a step than `step` below. A defense for which this is not so sets it to False.
    shares_batches = True

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.members = members.to(device)
        self.optimizer: torch.optim.Optimizer = adam(self.model, config)

    def batches(self) -> Iterable[torch.Tensor]:
        """The batches of one epoch: positions [b] in the members, drawn from PyTorch's global generator."""
        return torch.randperm(len(self.members)).split(self.config.batch_size)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """The scalar to minimise. `index` [b] are the positions of the batch in the members; `epoch` counts from 0."""
        return F.cross_entropy(logits, labels)

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, float]:
        """Train on one batch. Returns its loss and how many of its members were classified correctly.

        With several processes, both are the means of what they return.
        """
        size = len(index)
        part, weight = part_of(size)
        index = index[part].to(self.device)
        labels = self.members.labels[index]
        logits = self.forward(self.members.pixels(index))
        loss = weight * self.loss(logits, labels, index, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), weight * size * int((logits.argmax(1) == labels).sum()) / len(index)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [b, C] in float32. They are computed in bfloat16 where `train.bf16` is set and the device supports it."""
        with autocast(self.device, self.config.bf16):
            return self.network(images).float()

    @cached_property
    def network(self) -> nn.Module:
        """`model` as it is trained, with other processes where there are some. It shares the weights of `model`."""
        return parallel(self.model)

    def stateful(self) -> dict[str, Stateful]:
        """Everything that a resumed training must restore."""
        return {"model": self.model, "optimizer": self.optimizer}

    def facts(self) -> dict[str, Any]:
        """Plain numbers and words that every result of this training must show, such as DP-SGD's epsilon."""
        return {}


def adam(model: nn.Module, config: Train) -> torch.optim.Adam:
    """The paper's optimizer (Section IV-A), with amsgrad as in the released code."""
    return torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay, amsgrad=config.amsgrad)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast where it is `enabled` and the device has bfloat16 arithmetic; elsewhere it changes nothing.

    A device without bfloat16 arithmetic would emulate it, which is slower than float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native_bf16(device))


def facts_path(checkpoint: Path) -> Path:
    """The JSON file beside a finished checkpoint: its settings, its facts and the last line of its log."""
    return checkpoint.with_suffix(".json")


def checkpoint_facts(checkpoint: Path, remake: str) -> dict[str, Any]:
    """What the JSON file beside a checkpoint says: `settings`, `facts` and `last_epoch`. The weights are not loaded.

    Where the file is missing, as it is beside checkpoints of version 0.1, or older than the checkpoint, as after a kill between
    the two, it is made from the checkpoint.
    """
    path = facts_path(checkpoint)
    if not path.is_file() or path.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
        _write_facts(checkpoint, load_checkpoint(checkpoint, remake))
    return read_json(path, remake)


def fit(
    objective: Objective, path: Path, settings: dict[str, Any], seed: int, remake: str, test: Examples | None = None
) -> dict[str, Any]:
    """Train `objective` for its epochs, write the model of the last epoch to `path` and return that checkpoint.

    A training that was killed continues. A model that is trained already is loaded. Both raise UserError where they were made
    under other `settings`, a plain dict that is written into the checkpoint and into the JSON file beside it. With `test`, the
    epoch with the best accuracy on it is written to `<path>.best.pt`, as the released code does (paper Appendix E). The log
    `<path>.log.csv` has one line an epoch. Before its end, these files and the checkpoint from which a killed training
    continues are written together, as seldom as a `Pace` says. `remake` is the command that messages name.
    """
    if path.is_file():
        trained = load_checkpoint(path, remake)
        refuse_other_config(path, trained.get("settings"), settings, f"move it away, then run: {remake}")
        _restore({"model": objective.model}, trained, path, remake)
        return trained
    resume = path.with_suffix(".resume.pt")
    history: list[dict[str, float]] = []
    if resume.is_file():
        saved = load_checkpoint(resume, remake)
        refuse_other_config(resume, saved.get("settings"), settings, f"delete it, then run: {remake}")
        _restore(objective.stateful(), saved, resume, remake)
        history = saved["history"]
    if count() > 1 and not objective.shares_batches:
        raise UserError(f"{path.stem} is trained in one process: run it without torchrun. {remake}")
    epochs, hide, pace = objective.config.epochs, hide_progress(), Pace()
    best: dict[str, Any] | None = None  # the epoch with the best test accuracy, until it is written
    with tqdm(total=epochs, initial=len(history), desc=path.stem, unit="epoch", smoothing=0.1, disable=hide) as progress:
        for epoch in range(len(history), epochs):
            history.append(_epoch(objective, epoch, seed, test))
            if test is not None and _is_best(history):
                best = _content(objective, settings, history)
            if epoch + 1 < epochs and is_first() and pace.due():
                with pace.writing():
                    _write_progress(path, best, history)
                    best = None
                    # Written last: once it is there, these epochs are not run again.
                    state = {name: part.state_dict() for name, part in objective.stateful().items()}
                    save_checkpoint(resume, {**state, "settings": settings, "history": history})
            progress.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in history[-1].items() if k not in ("epoch", "seconds")))
            progress.update()
    finished = _content(objective, settings, history)
    if is_first():
        _write_progress(path, best, history)
        _save(path, finished)
        resume.unlink(missing_ok=True)
    wait_for_all()
    return finished


def _write_progress(path: Path, best: dict[str, Any] | None, history: list[dict[str, float]]) -> None:
    """Write the log, and the best epoch where there is a new one."""
    if best is not None:
        _save(path.with_suffix(".best.pt"), best)
    write_text(path.with_suffix(".log.csv"), pd.DataFrame(history).to_csv(index=False))


def _is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last epoch has a higher test accuracy than every epoch before it."""
    *earlier, last = (line["test_accuracy"] for line in history)
    return last > max(earlier, default=-1.0)


def _restore(parts: dict[str, Stateful], saved: dict[str, Any], path: Path, remake: str) -> None:
    """Load the content of a checkpoint into the modules and optimizers that it belongs to."""
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError) as error:  # torch: RuntimeError for a module, ValueError for an optimizer
        raise UserError(f"{path} holds another architecture. Delete it and run: {remake}") from error


def _content(objective: Objective, settings: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    """A checkpoint of the model as it is now."""
    return {
        "model": copy.deepcopy(objective.model.state_dict()),
        "settings": settings,
        "history": list(history),
        "facts": objective.facts(),
    }


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint and the JSON file beside it."""
    save_checkpoint(path, content)
    _write_facts(path, content)


def _write_facts(path: Path, content: dict[str, Any]) -> None:
    last_epoch = content["history"][-1] if content.get("history") else {}
    facts = {"settings": content.get("settings"), "facts": content.get("facts", {}), "last_epoch": last_epoch}
    write_json(facts_path(path), facts)


def _epoch(objective: Objective, epoch: int, seed: int, test: Examples | None) -> dict[str, float]:
    """Train for one epoch and return its line of the log."""
    torch.manual_seed(derive_seed("epoch", seed, epoch))  # seeds every device
    started = time.perf_counter()
    objective.model.train()
    loss, correct, seen = 0.0, 0.0, 0
    for index in objective.batches():
        batch_loss, batch_correct = objective.step(index, epoch)
        loss, correct, seen = loss + batch_loss * len(index), correct + batch_correct, seen + len(index)
    loss, correct = mean_over_processes([loss, correct], objective.device)
    row = {"epoch": epoch + 1, "loss": loss / max(seen, 1), "train_accuracy": correct / max(seen, 1)}
    if test is not None:
        row["test_accuracy"] = accuracy(objective.model, test, objective.device)
    return {**row, "seconds": time.perf_counter() - started}


@torch.inference_mode()
def predict(model: nn.Module, examples: Examples, device: torch.device, batch: int = 500) -> torch.Tensor:
    """Logits [n, C] of the images, float32 on the CPU. The model is put into evaluation mode."""
    model = model.to(device).eval()
    parts = [model(examples.take(slice(i, i + batch)).to(device).pixels(slice(None))) for i in range(0, len(examples), batch)]
    return torch.cat(parts).float().cpu()


def accuracy(model: nn.Module, examples: Examples, device: torch.device) -> float:
    """The share of the images that are classified correctly, 0..1."""
    return float((predict(model, examples, device).argmax(1) == examples.labels.cpu()).float().mean())
