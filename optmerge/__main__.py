"""``python -m optmerge`` is ``optmerge``."""

from __future__ import annotations

from optmerge.cli import main

if __name__ == "__main__":
    main()
