"""Rounding that a loaded model does while it computes: of activations and of caches."""
