"""From measurements to an answer: rows with intervals, thresholds, metrics, plots, the report."""
