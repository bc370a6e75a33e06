"""Which points a screening adds to the sweeps, and which variants have to be confirmed."""
