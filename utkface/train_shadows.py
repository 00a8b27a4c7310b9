"""Train shadow models under a defense (--defense NAME --count 64). The code is in common/experiments/shadow_models.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import run_script
from common.commands import train_shadows

if __name__ == "__main__":
    run_script(train_shadows, Path(__file__).resolve().parent)
