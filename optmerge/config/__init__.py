"""The search file: its schema, one file of settings per kind of part, and how it is read."""
