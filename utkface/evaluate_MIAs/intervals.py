"""Compare all intervals of scenario 1 (paper Figures 9 and 10). The code is in common/experiments/intervals.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import intervals

if __name__ == "__main__":
    run_script(intervals, Path(__file__).resolve().parents[1])
