"""Time a query, without and with Diffence (paper Table V). The code is in common/experiments/overhead.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import overhead

if __name__ == "__main__":
    run_script(overhead, Path(__file__).resolve().parents[1])
