"""Where a base model comes from: a wheel, the hub, a folder. One source, one module."""
