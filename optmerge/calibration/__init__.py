"""Calibration data: files and hub data sets in, tokenised fit / select / report splits and padded batches out."""

from optmerge.calibration.batches import Batch, Split
from optmerge.calibration.data import Calibration, load_calibration
from optmerge.calibration.task_data import TaskData

__all__ = ["Batch", "Calibration", "Split", "TaskData", "load_calibration"]
