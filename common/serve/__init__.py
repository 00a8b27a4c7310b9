"""Predictions of a protected classifier for a folder of images: `python -m common.serve`."""
