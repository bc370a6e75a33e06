"""Methods that take whole blocks out."""
