"""Models that others altered and published."""
