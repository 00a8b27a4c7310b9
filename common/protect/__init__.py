"""Put Diffence before any classifier: `protect` in Python, `python -m common.protect` on the command line."""

from common.protect.plug import protect

__all__ = ["protect"]
