"""Attack behind small diffusion models, and time queries. The code is in common/experiments/frontier.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import frontier

if __name__ == "__main__":
    run_script(frontier, Path(__file__).resolve().parents[1])
