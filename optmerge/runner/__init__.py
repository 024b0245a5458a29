"""The loop: evaluator, teachers, baselines, budgets, run directory and resume."""
