"""Methods that add blocks."""
