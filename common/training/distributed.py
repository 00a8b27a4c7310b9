"""Several processes for one job, as `torchrun` starts them: a GPU each, or a part of the cores.

All processes draw the same random numbers, and hence the same batches. Each takes a part of every batch, and
DistributedDataParallel averages the gradients over the processes, so that all of them have the same weights. Only the first
process writes files. A command that torchrun did not start is one process, to which nothing of this applies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.run import local_rank


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for the block. Joins none where torchrun did not start it."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def hide_progress() -> bool | None:
    """The `disable` of tqdm: the first process shows its progress on a terminal, the others nowhere."""
    return None if is_first() else True


def wait_for_all() -> None:
    """Return when every process has come here."""
    if count() > 1:
        dist.barrier(device_ids=[local_rank()] if dist.get_backend() == "nccl" else None)


def part_of(length: int) -> tuple[slice, float]:
    """Which of the `length` images of a batch this process takes, and the weight of its mean loss.

    With these weights, the mean over the processes is the mean over the batch, also where the parts differ in size. Where there
    are fewer images than processes, each process takes them all.
    """
    if length < count():
        return slice(None), 1.0
    part = slice(dist.get_rank() if count() > 1 else 0, None, count())
    return part, len(range(length)[part]) * count() / length


def parallel(model: nn.Module) -> nn.Module:
    """`model`, or with several processes a wrapper whose gradients are averages over them.

    On GPUs BatchNorm takes its statistics from the whole batch. On CPUs, where PyTorch cannot do this, each process takes them
    from its own part, and the running statistics are those of the first process.
    """
    if count() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[local_rank()] if on_gpu else None)


def mean_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each value over the processes."""
    if count() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (total / count()).tolist()
