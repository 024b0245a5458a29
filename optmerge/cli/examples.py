r"""An example or two of every verb, which its ``--help`` ends with.

    epilog("plan")          # "Examples:\n\n\b\n  optmerge plan search.yaml\n  ..."

A test reads each of them as the command line does.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "optmerge init search.yaml --base models/base --expert math=models/math --task math=data/math.jsonl",
        "optmerge init --from-mergekit merge.yml --to recipe.yaml",
    ),
    "ls": ("optmerge ls drivers", "optmerge ls spaces search.yaml"),
    "validate": ("optmerge validate search.yaml --set driver=cma",),
    "plan": ("optmerge plan search.yaml --groups", "optmerge plan search.yaml --set space=layer-wise"),
    "pool": ("optmerge pool search.yaml --keep 8 --to eight.yaml",),
    "baseline": ("optmerge baseline search.yaml --tune 20 --against runs/first",),
    "search": (
        "optmerge search search.yaml",
        "optmerge search search.yaml --set driver=cma --set space=layer-wise --limit 32 --output runs/second",
        "optmerge search search.yaml --set space.start=runs/first/recipe.yaml --output runs/third",
        "optmerge search --reproduce runs/first/manifest.json --output runs/again",
    ),
    "resume": ("optmerge resume runs/first",),
    "status": ("optmerge status runs/first", "optmerge status runs/first --json"),
    "report": ("optmerge report runs/first",),
    "explain": ("optmerge explain runs/first --cheap",),
    "front": ("optmerge front runs/first",),
    "compare": ("optmerge compare runs/first runs/second --picture trajectories.png",),
    "leaderboard": ("optmerge leaderboard runs",),
    "dashboard": ("optmerge dashboard runs/first --port 8081",),
    "sync": ("optmerge sync runs/first --project merges",),
    "export": (
        "optmerge export runs/first --format checkpoint --to merged",
        "optmerge export runs/first --format mergekit --to merge.yml",
    ),
    "push": ("optmerge push merged me/merged --dry-run",),
    "merge": ("optmerge merge recipe.yaml --to merged --dtype bfloat16 --verify",),
    "try": ('optmerge try runs/first "a film to remember"',),
    "demo": ("optmerge demo --quick",),
    "doctor": ("optmerge doctor", "optmerge doctor --json"),
    "schema": ("optmerge schema --to search.schema.json",),
    "clean": ("optmerge clean", "optmerge clean --yes"),
}


def epilog(verb: str) -> str:
    r"""The examples of a verb as help prints them, line by line ("\b" keeps lines as they are)."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in EXAMPLES[verb])
