"""Methods that set single weights to zero."""
