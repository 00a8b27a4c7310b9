"""Attack images with a wrong label, the most exposed members. The code is in common/experiments/worst_case.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import worst_case

if __name__ == "__main__":
    run_script(worst_case, Path(__file__).resolve().parents[1])
