"""What a run will cost: predicted from its plan, by a model that is fitted on the jobs' own usage files."""
