"""What every step and tool runs on: addresses, whole directories, locks, fetching, the service that starts steps."""
