"""The seconds of a training, from its logs (paper Table VIII). The code is in common/experiments/training_cost.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import training_cost

if __name__ == "__main__":
    run_script(training_cost, Path(__file__).resolve().parents[1])
