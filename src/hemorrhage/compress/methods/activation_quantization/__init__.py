"""Methods that round what layers read or attention remembers."""
