"""Decoding strategies. One strategy, one module."""
