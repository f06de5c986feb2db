"""Comparison of finished runs: which runs, which are seeds of one system, figures, tests, and their formats."""
