"""What is checked and measured on every altered model: integrity, fidelity, size."""
