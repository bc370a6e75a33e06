"""Damage curves: shapes, thresholds, which points to run next."""
