"""Diffence: membership-inference attacks on classifiers, and defenses. The folders of the data sets only call this package."""
