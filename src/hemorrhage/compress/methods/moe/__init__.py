"""Methods that make, split or disturb mixtures of experts."""
