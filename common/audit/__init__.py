"""An audit of any classifier for membership inference, from its saved outputs: `python -m common.audit`."""
