"""Train the diffusion model that re-generates images. The code is in common/diffence/ddpm.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import train_ddpm

if __name__ == "__main__":
    run_script(train_ddpm, Path(__file__).resolve().parents[1])
