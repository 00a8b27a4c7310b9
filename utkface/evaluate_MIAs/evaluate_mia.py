"""Attack a classifier, without and with Diffence. evaluate_mia.sh runs it. The code is in common/experiments/evaluate.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import evaluate_mia

if __name__ == "__main__":
    run_script(evaluate_mia, Path(__file__).resolve().parents[1])
