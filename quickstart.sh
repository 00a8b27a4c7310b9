#!/usr/bin/env bash
# The main experiment on the embedded data set, in minutes on a laptop: attacks find the training set of a classifier, and Diffence
# protects it. The same commands in cifar10/, cifar100/ and svhn/ are the paper's experiment. A rerun continues a stopped one. The seed
# is 1, because with seed 0 the training ends on a jump of the loss (docs/findings.md).
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh

echo "1/5 Partition: members, reference, non-members"
"$PYTHON" synthetic/data_partition.py

echo "2/5 Train the undefended classifier on the members"
"$PYTHON" synthetic/train_defense.py --defense undefended --seed 1

echo "3/5 Train the diffusion model on the members' images"
"$PYTHON" synthetic/diff_defense/train_ddpm.py --seed 1

echo "4/5 Attack the classifier, without Diffence and with it in scenarios 1, 2 and 3"
bash synthetic/evaluate_MIAs/evaluate_mia.sh --defense undefended --scenario 1 2 3 --seed 1

echo "5/5 Put tables, figures and the paper's numbers on one page"
"$PYTHON" -m common.report --rows synthetic/evaluate_MIAs/results --out synthetic/evaluate_MIAs/results/report
