"""Merging: deltas, methods, recipes, and the engine that writes coefficients into a resident model."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "task_arithmetic": "base + sum of coefficient times task vector (Ilharco et al. 2023)",
    "iso-c": "flat spectrum on the summed task vectors, as one more direction (Marczak et al. 2025)",
}
"""The methods that exist: name -> one line. `config.methods.METHOD_CONFIGS` has their settings."""
