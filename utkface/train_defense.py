"""Train a classifier under a defense (--defense NAME). The code is in common/training/loop.py and common/defenses/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import run_script
from common.commands import train_defense

if __name__ == "__main__":
    run_script(train_defense, Path(__file__).resolve().parent)
