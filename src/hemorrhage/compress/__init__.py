"""Step compress: alter a model. One method, one module."""
