"""Load or download the official files and partition them. The code is in common/data/partition.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import run_script
from common.commands import data_partition

if __name__ == "__main__":
    run_script(data_partition, Path(__file__).resolve().parent)
