"""Attack a classifier by its labels alone (paper Table VI). The code is in common/experiments/label_only.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import label_only

if __name__ == "__main__":
    run_script(label_only, Path(__file__).resolve().parents[1])
