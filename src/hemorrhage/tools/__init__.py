"""Commands that people call next to the pipeline; hemorrhage.cli lists them."""
