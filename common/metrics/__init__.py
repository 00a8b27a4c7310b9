"""Metrics of attacks and of predictions. They are computed in this package only.

privacy: phi, and the metrics of an attack's scores: AUC, TPR at a low FPR, TNR at a low FNR, accuracy and its thresholds.
intervals: 95% confidence intervals of AUC and of rates, mean and standard deviation over seeds.
calibration: ECE, NLL and the bins of reliability diagrams.
"""
