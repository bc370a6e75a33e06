"""Basis of every step and tool: addresses, whole directories, locks, fetching, the service that starts steps."""
