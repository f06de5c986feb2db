"""The report of a study: one HTML page with its figures and tables, and the figures as PNG and PDF."""
