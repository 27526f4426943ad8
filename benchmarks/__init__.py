"""Programs that measure and compare."""
