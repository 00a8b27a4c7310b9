"""Attack behind Diffence for many N and T (paper Figure 11). The code is in common/experiments/n_and_t.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import n_and_t

if __name__ == "__main__":
    run_script(n_and_t, Path(__file__).resolve().parents[1])
