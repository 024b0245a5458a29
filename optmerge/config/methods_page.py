"""What is known of every method before it runs, for people: rows of `optmerge ls methods`, and the table in the docs.

    python -m optmerge.config.methods_page docs/methods.md        # writes the table anew, between its two marks

Everything comes from the declarations of the methods' settings (`optmerge.config.methods`); a test holds the page and
the declarations equal.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmerge.atomic import atomic_write
from optmerge.config.methods import METHOD_CONFIGS, MethodSettings
from optmerge.config.methods.base import Searched

BEGIN = "<!-- made by `python -m optmerge.config.methods_page docs/methods.md` -->"
END = "<!-- end of what is made -->"

NEED_WORDS = {
    "grams": "inputs",
    "merged-grams": "inputs",
    "output-grams": "gradients",
    "logit-distance": "inputs",
    "fisher": "gradients",
    "saliency": "gradients",
    "base-saliency": "gradients",
}
"""Statistics -> what of the calibration data they take."""


@dataclass(frozen=True)
class MethodRow:
    """One method.

    Attributes:
        name: In search files.
        what: What it does, in a line.
        needs: weights, and what of calibration data: inputs, gradients, labels.
        cost: Of one merge.
        settings: Setting -> its default.
        searched: Setting -> how it is searched, for those that can be tuned.
        searchable: What coefficients can scale: each expert's "parts" of it, or the "whole" delta only.
        scale: The published one.
        experts: Fewest and most experts; None is any number.
        mergekit: What mergekit calls it, where a configuration for it can say the same.
        paper: Authors and year.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    cost: str
    settings: dict[str, Any]
    searched: dict[str, Searched]
    searchable: str
    scale: float
    experts: tuple[int, int | None]
    mergekit: str | None
    paper: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @property
    def listed_needs(self) -> str:
        """What it needs, and how many experts where not any number will do."""
        least, most = self.experts
        told = ", ".join(self.needs)
        if most is not None:
            return f"{told}; {least} to {most} experts" if least < most else f"{told}; {least} experts"
        return f"{told}; {least} experts or more" if least > 1 else told

    def listed_settings(self, mark: str = "*") -> str:
        """The settings with their defaults, those that can be tuned with a mark."""
        return ", ".join(
            f"{key}{mark if key in self.searched else ''}={_shown(value)}" for key, value in self.settings.items()
        )


def method_row(config: type[MethodSettings]) -> MethodRow:
    """What a method declares.

    >>> from optmerge.config.methods import TiesConfig
    >>> row = method_row(TiesConfig)
    >>> row.needs, row.searchable, row.settings["density"]
    (('weights',), 'whole', 0.2)
    """
    facts = config.facts
    words = sorted({NEED_WORDS[need] for need in facts.needs}, reverse=True) + ["labels"] * facts.labels
    return MethodRow(
        name=config.method_name(),
        what=(config.__doc__ or "").partition("\n")[0],
        needs=("weights", *words),
        cost=facts.cost,
        settings={
            key: field.get_default(call_default_factory=True, validated_data={})
            for key, field in config.model_fields.items()
            if key != "name"
        },
        searched=config.tuned(),
        searchable="parts" if facts.linear else "whole",
        scale=facts.scale,
        experts=facts.experts,
        mergekit=facts.mergekit,
        paper=facts.paper,
    )


def method_rows() -> list[MethodRow]:
    """All methods, in the order of the registry."""
    return [method_row(config) for config in METHOD_CONFIGS.values()]


def methods_table() -> str:
    """The Markdown table of all methods."""
    head = ["name", "what it does", "needs", "searched as", "settings", "scale", "cost", "paper", "mergekit 0.1.5"]
    lines = ["| " + " | ".join(head) + " |", "|" + " :-- |" * len(head)]
    for row in method_rows():
        settings = ", ".join(f"`{key}`{'*' if key in row.searched else ''}" for key in row.settings)
        cells = [
            f"`{row.name}`",
            row.what,
            row.listed_needs,
            row.searchable,
            settings,
            f"{row.scale:g}",
            row.cost,
            row.paper,
            f"`{row.mergekit}`" if row.mergekit else "",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def renewed(page: str) -> str:
    """A page with the table between its marks made anew.

    Raises:
        ValueError: The page has not both marks, once each, in their order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs a line {BEGIN!r} and below it a line {END!r}")
    return f"{before}{BEGIN}\n\n{methods_table()}\n\n{END}{after}"


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    atomic_write(page, renewed(page.read_text(encoding="utf-8")))
