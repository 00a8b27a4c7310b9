"""The experiments. Each evaluates a defended model and writes rows."""
