"""Attack Diffence itself by repeated queries. The code is in common/experiments/repeated_queries.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import attack_diffence

if __name__ == "__main__":
    run_script(attack_diffence, Path(__file__).resolve().parents[1])
