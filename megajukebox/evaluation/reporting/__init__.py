"""Scores with their intervals as JSON, tables, plots and a page, and the gate between two of them."""
