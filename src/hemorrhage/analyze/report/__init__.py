"""The page and the model cards that people read."""
