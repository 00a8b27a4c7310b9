"""The audit of anybody's classifier, from its saved outputs: `python -m common.audit`."""
