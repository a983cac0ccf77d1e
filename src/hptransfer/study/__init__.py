"""Studies: the study file, its trials, the plan, the results store and the runner."""
