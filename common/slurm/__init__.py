"""The jobs of a plan on a Slurm cluster: `all-train-all.sh --slurm cluster.yaml` (docs/clusters.md)."""
