"""MemGuard's phase I: all samples at once (common/defenses/memguard.py) against one at a time, as published.

`OMP_NUM_THREADS=1 python -m benchmarks.memguard` prints CPU seconds a sample of both, from one run on the same answers, and
their ratio. Both must find the same noise.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.defenses.memguard import Guard, find_noise

# Written out once more and not imported: an oracle shares no constant with what it judges.
STEP, LABEL_WEIGHT, UNDECIDED = 0.1, 10.0, 1e-5
DISTORTION_WEIGHTS = (0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)

CLASSES, BATCHED, ALONE, STEPS, REPEATS = 10, 1000, 20, 300, 3


def find_noise_alone(guard: nn.Module, z: torch.Tensor, steps: int) -> torch.Tensor:
    """Phase I for one answer, logits [C] in float64: the plain loop of the paper's Algorithm 1."""

    def guess(e: torch.Tensor) -> float:
        return guard(e.softmax(0)[None]).item()

    label, true, start = int(z.argmax()), z.softmax(0), guess(z)
    best = z
    if abs(torch.sigmoid(torch.tensor(start, dtype=torch.float64)) - 0.5) <= UNDECIDED:
        return best
    for weight in DISTORTION_WEIGHTS:
        e = z
        for _ in range(steps):
            e = e.detach().requires_grad_()
            p = e.softmax(0)
            others = torch.cat([e[:label], e[label + 1 :]]).max()
            loss = guard(p[None]).abs() + LABEL_WEIGHT * (others - e[label]).relu() + weight * (p - true).abs().sum()
            (gradient,) = torch.autograd.grad(loss.sum(), e)
            norm = gradient.norm()
            e = (e - STEP * gradient / norm if norm > 0 else e).detach()
            if guess(e) * start < 0 and int(e.argmax()) == label:
                best = e
                break
        else:
            return best  # not found at this weight: keep the success of the one before
    return best


def trained_guard(logits: torch.Tensor, member: torch.Tensor) -> Guard:
    """A guard that tells these members [n] apart, so that the search has work to do."""
    guard = Guard(CLASSES, seed=0)
    optimizer = torch.optim.Adam(guard.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(guard(logits.softmax(1)), member).backward()
        optimizer.step()
    return guard


def main() -> None:
    torch.manual_seed(0)
    member = (torch.arange(BATCHED) % 2).float()
    logits = torch.randn(BATCHED, CLASSES, dtype=torch.float64)
    logits[:, 0] += 2 + 6 * torch.rand(BATCHED, dtype=torch.float64) + 3 * member  # members are the surer ones
    guard = trained_guard(logits, member)
    find_noise(guard, logits[:100], STEPS)  # warm up

    batched, single = float("inf"), float("inf")  # CPU seconds a sample; the fastest of REPEATS, taken in turn
    for _ in range(REPEATS):
        started = time.process_time()
        together = find_noise(guard, logits, STEPS)
        batched = min(batched, (time.process_time() - started) / BATCHED)
        started = time.process_time()
        alone = torch.stack([find_noise_alone(guard, row, STEPS) for row in logits[:ALONE]])
        single = min(single, (time.process_time() - started) / ALONE)

    apart = (together[:ALONE].softmax(1) - alone.softmax(1)).abs().max().item()
    changed = (together != logits).any(1).double().mean().item()
    print(f"{CLASSES} classes, at most {STEPS} steps a weight, {torch.get_num_threads()} thread(s); noise found: {changed:.0%}")
    print(f"one at a time  {single:.6f} CPU seconds a sample ({ALONE} samples)")
    print(f"batched        {batched:.6f} CPU seconds a sample ({BATCHED} samples)")
    print(f"ratio          {single / batched:.0f}; largest difference of a confidence {apart:.1e}")


if __name__ == "__main__":
    main()
