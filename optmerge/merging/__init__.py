"""Merging: deltas, methods, recipes, and the engine that writes coefficients into a resident model."""
