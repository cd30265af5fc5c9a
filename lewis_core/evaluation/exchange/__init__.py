"""Results of the reference system: its files become predictions, which are scored as our own."""
