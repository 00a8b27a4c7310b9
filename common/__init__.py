"""Diffence: membership privacy of classifiers, measured and defended. All logic, once; the data set folders hold none."""
