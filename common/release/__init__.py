"""The authors' own files in this repository's layout: `python -m common.release`."""
