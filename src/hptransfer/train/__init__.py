"""Training: text to tokens to batches, and ensembles of stacked trials."""
