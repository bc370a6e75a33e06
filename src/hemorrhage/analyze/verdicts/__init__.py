"""What follows from the rows: what to ship, which claims hold, what looks wrong."""
