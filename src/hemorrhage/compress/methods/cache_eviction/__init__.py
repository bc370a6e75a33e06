"""Methods that evict what attention remembers."""
