"""Commands that people call beside the pipeline."""
