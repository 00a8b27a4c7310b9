"""DIFFENCE (paper Section III): re-generate an image N times, release a prediction that keeps the label."""
