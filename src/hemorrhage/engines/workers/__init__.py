"""What runs inside an engine's environment: a file for each engine, and the loop that they share."""
