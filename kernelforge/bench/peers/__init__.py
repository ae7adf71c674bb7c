"""The candidates: one module each, imported only in its own worker."""
