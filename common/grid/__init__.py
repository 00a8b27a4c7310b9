"""Grid search over the options of a defense: `python -m common.grid`."""
