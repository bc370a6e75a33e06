"""How weights are stored in a checkpoint. One storage format, one module."""
