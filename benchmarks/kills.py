"""python -m benchmarks.kills: kill the whole plan of a tiny data set at random moments, and compare with an undisturbed run.

`all-train-all.sh` runs in two copies of the source tree: every defense, shadow models, the diffusion model, candidates,
evaluations and further experiments. In the second copy the launcher and its jobs are killed with -9, all at once, and started
anew, again and again. In the end both copies must hold the same files. Weights, candidates, logits, scores and rows must be
the same bit for bit, without times, costs and commits. A kill before anything progressed counts too. One thread each.

With `--folder`, the undisturbed run is kept there, and a further call does not make it again.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from common.cli import ROOT

TINY = ROOT / "tests" / "tiny.yaml"
QUICK = (
    "data.members=240",  # MemGuard needs members that are not scored
    "data.reference=240",
    "data.non_members=220",
    "train.epochs=3",
    "defenses.selena={k: 3, l: 1}",
    "defenses.memguard={epochs: 5, steps: 20, lr: 0.1}",
    "defenses.dpsgd.groups=4",
    "defenses.dpsgd-private.groups=4",
)
PLAN = "bash all-train-all.sh --datasets synthetic --profile tiny --shadows 4 --experiments intervals n_and_t --device cpu"
FOLDERS = ("data", "final-all-models", "diff_defense", "evaluate_MIAs")
# What two runs need not share. `weights` is the digest of a checkpoint's file, which holds the seconds of its epochs.
UNEQUAL = {"time", "commit", "seconds", "cpu_s_per_image", "cpu_seconds", "path", "paths", "weights"}


def copy_tree(place: Path) -> Path:
    """A copy of the source tree without anything that a run makes, and with the tiny profile."""
    listing = ["git", "ls-files", "common", "synthetic", "*.sh", "pyproject.toml"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).split():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    profile = OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(QUICK)))
    OmegaConf.save(profile, place / "synthetic" / "configs" / "tiny.yaml")
    return place


def start(tree: Path) -> "subprocess.Popen[bytes]":
    """The launcher in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    with open(tree / "launcher.log", "wb") as log:
        return subprocess.Popen(PLAN.split(), cwd=tree, env=environment, stdout=log, stderr=log, preexec_fn=os.setpgrp)


def run_with_kills(tree: Path, kills: int, longest: float, seed: int) -> int:
    """Run the plan to its end, killing it up to `kills` times on the way, each within `longest` seconds after its start.

    Returns how many kills met a running plan.
    """
    moments = random.Random(seed)
    for killed in range(kills):
        process = start(tree)
        try:
            process.wait(timeout=moments.uniform(0, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            require_success(process, tree)
            return killed
        print(f"\r{killed + 1} kills", end="", flush=True)
    run_to_the_end(tree)
    return kills


def run_to_the_end(tree: Path) -> None:
    process = start(tree)
    process.wait()
    require_success(process, tree)


def require_success(process: "subprocess.Popen[bytes]", tree: Path) -> None:
    if process.returncode:
        raise SystemExit(f"the plan failed with exit code {process.returncode}: see {tree}/launcher.log.")


def undisturbed(place: Path) -> dict[str, str]:
    """Run the plan in the folder `whole` of a place. Returns its `digests`."""
    started = time.perf_counter()
    whole = copy_tree(place / "whole")
    run_to_the_end(whole)
    expected = digests(whole)
    print(f"undisturbed: {time.perf_counter() - started:.0f} s, {len(expected)} files to compare", flush=True)
    return expected


def digests(tree: Path) -> dict[str, str]:
    """A digest of what every product of the plan says, by its path. Text and pictures follow from rows and are left out."""
    paths = [path for folder in FOLDERS for path in sorted((tree / "synthetic" / folder).rglob("*")) if path.is_file()]
    found = {str(path.relative_to(tree)): content(path) for path in paths}
    return {name: hashlib.sha256(repr(told).encode()).hexdigest() for name, told in found.items() if told is not None}


def content(path: Path) -> Any:
    """What is compared of a file: None for a format that is not, the name alone for a temporary file."""
    if path.suffix == ".partial":
        return path.name
    if path.suffix == ".pt":
        return comparable(torch.load(path, weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {name: comparable(stored[name]) for name in sorted(stored.files) if name not in ("settings", "cpu")}
    if path.suffix == ".npy":
        return comparable(np.load(path))
    if path.suffix == ".safetensors":
        return path.read_bytes()
    if path.suffix == ".json":
        return comparable(json.loads(path.read_text()))
    return None


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The files of which two trees have other digests, or which one of them lacks."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def comparable(value: Any) -> Any:
    """A value in which every bit of an array counts, without UNEQUAL."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, np.ascontiguousarray(value).tobytes()
    if isinstance(value, dict):
        return {key: comparable(one) for key, one in sorted(value.items(), key=str) if key not in UNEQUAL}
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--longest", type=float, default=30, help="seconds from a start to a kill, at most (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--folder", type=Path, help="for both runs (default: one that is deleted if all is the same)")
    parsed = parser.parse_args()
    place = (parsed.folder or Path(tempfile.mkdtemp())).resolve()
    expected = undisturbed(place)
    done, round_ = 0, 0
    while done < parsed.kills:
        killed = copy_tree(place / "killed")
        done += run_with_kills(killed, parsed.kills - done, parsed.longest, parsed.seed + round_)
        round_ += 1
        differ = differing(expected, digests(killed))
        if differ:
            raise SystemExit(f"\nafter {done} kills {len(differ)} files in {place} differ: {', '.join(differ[:10])}")
        shutil.rmtree(killed)
    if parsed.folder is None:
        shutil.rmtree(place)
    print(f"\n{done} kills over {round_} whole plan(s): {len(expected)} files are the same, and no temporary file is left")


if __name__ == "__main__":
    main()
