"""Generated probe tasks."""
