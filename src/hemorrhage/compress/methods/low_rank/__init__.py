"""Methods that replace a matrix by the product of two thin ones."""
