"""Rows, and everything that is made from rows: text, tables and figures. `python -m common.report` makes all tables."""
