"""Data of benchmarks: of lm-eval, of code tasks, of open-ended tasks."""
