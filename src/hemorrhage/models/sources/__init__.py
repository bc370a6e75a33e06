"""Sources of a base model: a wheel, the hub, a folder. One source, one module."""
