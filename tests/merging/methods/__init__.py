"""Merging methods over models that are dictionaries."""
