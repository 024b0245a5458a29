"""Search for model-merging recipes."""
