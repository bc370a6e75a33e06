"""What several methods share: grids, masks, column updates, stacks of blocks, training loops."""
