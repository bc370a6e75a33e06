"""Costs of a run, predicted from its plan by a model that is fitted on the jobs' usage files."""
