"""Diffence (paper Section III): reconstruct an image N times, and release the prediction of a reconstruction."""
