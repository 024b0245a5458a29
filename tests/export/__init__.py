"""Tests of optmerge.export."""
