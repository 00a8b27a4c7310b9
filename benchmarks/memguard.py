"""The time of MemGuard's phase I: all samples together (common/defenses/memguard.py), and one at a time, as published.

`OMP_NUM_THREADS=1 python -m benchmarks.memguard` runs both on the same answers. It prints the CPU seconds that each takes for a
sample, their ratio, and the largest difference of their results, which must be due to rounding.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.defenses.memguard import Guard, find_noise

# Copied and not imported, because the tests compare the package with this file: a wrong constant there must make a difference.
STEP, LABEL_WEIGHT, UNDECIDED = 0.1, 10.0, 1e-5
DISTORTION_WEIGHTS = (0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)

CLASSES, STEPS, REPEATS = 10, 300, 3
BATCH_SAMPLES, SINGLE_SAMPLES = 1000, 20  # how many samples are searched together, and one at a time


def find_noise_single(guard: nn.Module, z: torch.Tensor, steps: int) -> torch.Tensor:
    """Phase I for the logits z [C], float64, of a single sample: a plain loop, as in Algorithm 1 of the MemGuard paper."""

    def member_logit(e: torch.Tensor) -> float:
        return guard(e.softmax(0)[None]).item()

    label, original, original_logit = int(z.argmax()), z.softmax(0), member_logit(z)
    result = z
    if abs(torch.sigmoid(torch.tensor(original_logit, dtype=torch.float64)) - 0.5) <= UNDECIDED:
        return result
    for weight in DISTORTION_WEIGHTS:
        e = z
        for _ in range(steps):
            e = e.detach().requires_grad_()
            p = e.softmax(0)
            largest_other = torch.cat([e[:label], e[label + 1 :]]).max()
            label_loss = (largest_other - e[label]).relu()
            loss = guard(p[None]).abs() + LABEL_WEIGHT * label_loss + weight * (p - original).abs().sum()
            (gradient,) = torch.autograd.grad(loss.sum(), e)
            norm = gradient.norm()
            e = (e - STEP * gradient / norm if norm > 0 else e).detach()
            if member_logit(e) * original_logit < 0 and int(e.argmax()) == label:
                result = e
                break
        else:
            return result  # no success with this weight: the result is that of the weight before
    return result


def trained_guard(logits: torch.Tensor, membership: torch.Tensor) -> Guard:
    """A guard trained to predict the membership [n], 0.0 or 1.0, of logits [n, C], so that the search needs steps."""
    guard = Guard(CLASSES, seed=0)
    optimizer = torch.optim.Adam(guard.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(guard(logits.softmax(1)), membership).backward()
        optimizer.step()
    return guard


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    membership = (torch.arange(BATCH_SAMPLES) % 2).float()
    logits = torch.randn(BATCH_SAMPLES, CLASSES, dtype=torch.float64)
    logits[:, 0] += 2 + 6 * torch.rand(BATCH_SAMPLES, dtype=torch.float64) + 3 * membership  # members are more confident
    guard = trained_guard(logits, membership)
    find_noise(guard, logits[:100], STEPS)  # warm up

    # CPU seconds for each sample. Both searches are repeated in turn, and the fastest repetition counts.
    batched_seconds, single_seconds = float("inf"), float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        batched = find_noise(guard, logits, STEPS)
        batched_seconds = min(batched_seconds, (time.process_time() - started) / BATCH_SAMPLES)
        started = time.process_time()
        single = torch.stack([find_noise_single(guard, row, STEPS) for row in logits[:SINGLE_SAMPLES]])
        single_seconds = min(single_seconds, (time.process_time() - started) / SINGLE_SAMPLES)

    difference = (batched[:SINGLE_SAMPLES].softmax(1) - single.softmax(1)).abs().max().item()
    changed = (batched != logits).any(1).double().mean().item()
    print(f"{CLASSES} classes, at most {STEPS} steps a weight, {torch.get_num_threads()} thread(s); noise found: {changed:.0%}")
    print(f"one at a time  {single_seconds:.6f} CPU seconds a sample ({SINGLE_SAMPLES} samples)")
    print(f"batched        {batched_seconds:.6f} CPU seconds a sample ({BATCH_SAMPLES} samples)")
    print(f"ratio          {single_seconds / batched_seconds:.0f}; largest difference of a confidence {difference:.1e}")


if __name__ == "__main__":
    main()
