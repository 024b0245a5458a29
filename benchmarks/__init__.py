"""Measurements of optmerge beside its peers: one command each, every ratio from one run, every model made on the spot.

python -m benchmarks.apply          writing a candidate, against copying the same bytes
python -m benchmarks.gradient       a gradient step, against plain training and FusionBench
python -m benchmarks.growth         peak memory of a gradient step as experts are added
python -m benchmarks.merge          `optmerge merge`, against mergekit-yaml
python -m benchmarks.large          models larger than memory allows at once
python -m benchmarks.lora           a search over sixteen adapters, against its base alone
python -m benchmarks.directions     what the directions of a search are worth, on the demo's experts
python -m benchmarks.time_to_quality  what it takes to reach what AdaMerging and mergekit-evolve reach, on three suites
python -m benchmarks.startup        `optmerge --help`, against an interpreter that does nothing

All but the last take ``--small`` (seconds; its figures say nothing) and ``--work DIR`` (where files go; else they are
removed). What they printed on real runs is in RESULTS.md.
"""
