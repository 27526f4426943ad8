"""Programs for single runs."""
