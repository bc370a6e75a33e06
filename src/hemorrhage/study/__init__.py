"""A study: its parameters, its variants, the addresses of its outputs, what it will cost."""
