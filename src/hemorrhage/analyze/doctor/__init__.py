"""Predicted against measured damage, and the causes of what looks wrong."""
