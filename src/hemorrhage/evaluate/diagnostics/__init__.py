"""What happens inside the network, block by block."""
