"""Measurements of the bench itself: speed, memory, accuracy, next to other programs."""
