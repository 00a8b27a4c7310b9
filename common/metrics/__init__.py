"""Metrics of attacks and of predictions, the only place where they are computed."""
