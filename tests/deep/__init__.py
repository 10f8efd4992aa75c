"""Suites for large counts, run by `tools/deep.py` and never collected by pytest. Each takes a seed and a count."""
