"""Draw the candidates of all evaluated images, once for every defense. The code is in common/diffence/candidates.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.cli import run_script
from common.commands import draw_candidates

if __name__ == "__main__":
    run_script(draw_candidates, Path(__file__).resolve().parents[1])
