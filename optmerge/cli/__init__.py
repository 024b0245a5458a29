"""The command line: one module per verb, tables and colours only here.

Facts go to stdout (as JSON with ``--json``), progress and errors to stderr. Nothing heavy is imported before a verb
needs it, so that ``optmerge --help`` answers at once.

Exit codes: 0 done, 2 a mistake that the user can mend, 3 the run failed, 130 interrupted with the state saved.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The ``optmerge`` command."""
    from optmerge.errors import OptmergeError

    try:
        from optmerge.cli.app import make_app
        from optmerge.cli.completion import join_assignments

        join_assignments(os.environ)
        make_app()(prog_name="optmerge")
    except OptmergeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
