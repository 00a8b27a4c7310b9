"""python -m benchmarks.report: the seconds that `python -m common.report` takes for many rows.

The committed rows are copied under new seeds, with their scores and pictures, until there are as many as asked for. The report
is then made in a process of its own, from nothing: every page, table and figure, and report.html.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

from common.cli import ROOT

MAKE = "import sys; from pathlib import Path; from common.report.make import make_all; make_all(Path(sys.argv[1]), [])"


def copy_rows(root: Path, wanted: int) -> None:
    """Fill `root`/results with copies of the committed rows, `wanted` in all."""
    originals = sorted((ROOT / "results").glob("*/*/*.json"))
    copies = ((seed, path) for seed in count() for path in originals)
    for seed, path in islice(copies, wanted):
        row = json.loads(path.read_text())
        row["seed"] += seed
        folder = root / path.parent.parent.relative_to(ROOT) / path.parent.name.replace("seed0", f"seed{row['seed']}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_text(json.dumps(row))
        for beside in (path.with_suffix(".npz"), path.with_name("reconstructions.png")):
            if beside.is_file():
                shutil.copy(beside, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="how many rows (default: 1000)")
    wanted = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copy(ROOT / "README.md", root)
        shutil.copytree(ROOT / "docs", root / "docs")
        copy_rows(root, wanted)
        for path in (ROOT / "results" / "paper.csv", *(ROOT / "results").glob("benchmark_*.json")):
            shutil.copy(path, root / "results")
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAKE, str(root)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        wall, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        made = len(list((root / "results").rglob("*.json")))
        print(f"{made:,} files of rows: {wall:.1f} s, of which {used.ru_utime + used.ru_stime:.1f} s of CPU")


if __name__ == "__main__":
    main()
