"""Methods that take heads, channels or columns out of blocks."""
