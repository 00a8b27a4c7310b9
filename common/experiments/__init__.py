"""The experiments: each evaluates defended models and writes rows."""
