"""From numbers to rows, and from rows to tables, pages and pictures. `python -m common.report` makes all tables."""
