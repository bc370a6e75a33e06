"""Storage formats of weights in a checkpoint. One storage format, one module."""
