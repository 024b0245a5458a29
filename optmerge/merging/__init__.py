"""Merging: deltas, methods, recipes, and the engine that writes coefficients into a resident model."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "average": "the mean of the experts (Wortsman et al. 2022)",
    "linear": "the weighted mean, or weighted sum, of the experts (Wortsman et al. 2022)",
    "task_arithmetic": "base + sum of coefficient times task vector (Ilharco et al. 2023)",
    "slerp": "spherical interpolation of two models, tensor by tensor (Shoemake 1985)",
    "ties": "trim, elect signs, average what agrees (Yadav et al. 2023)",
    "dare": "drop entries at random, rescale, add up (Yu et al. 2024)",
    "dare-ties": "drop entries at random and rescale, then TIES (Yu et al. 2024)",
    "ties-split": "trim and elect signs, each expert's part kept apart (Yang et al. 2024, AdaMerging++)",
    "iso-c": "flat spectrum on the summed task vectors (Marczak et al. 2025)",
    "tsv-m": "leading singular vectors of every expert, whitened together (Gargiulo et al. 2025)",
    "regmean": "least squares on the inputs of every linear layer (Jin et al. 2023)",
}
"""The methods that exist: name -> one line. `config.methods.METHOD_CONFIGS` has their settings."""
