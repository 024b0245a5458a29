"""Export: a recipe as a checkpoint, as a mergekit config, or as a table of coefficients."""

from __future__ import annotations

from optmerge.export.base import Exporter
from optmerge.export.checkpoint import CheckpointExporter
from optmerge.export.coefficients import CoefficientsExporter
from optmerge.export.mergekit import MergekitExporter

EXPORTERS: dict[str, type[Exporter]] = {
    exporter.name: exporter for exporter in (CheckpointExporter, MergekitExporter, CoefficientsExporter)
}
"""Format name -> exporter."""

__all__ = ["EXPORTERS", "CheckpointExporter", "CoefficientsExporter", "Exporter", "MergekitExporter"]
