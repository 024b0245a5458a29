"""Numbers and tables in Markdown, the same in every view."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "-"  # what is not known


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> str:
    """A Markdown table that also reads well as text; columns not in ``left`` are right-aligned.

    >>> print(table(["name", "value"], [["a", "1"]], left=(0,)))
    | name | value |
    | :--- | ----: |
    | a    |     1 |
    """
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            + " |"
        )

    rule = [":" + "-" * (w - 1) if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])


def number(value: float | None) -> str:
    """An objective value: three decimals around one, three digits beyond.

    >>> number(0.4131), number(2.0), number(0.00123), number(None)
    ('0.413', '2.000', '0.00123', '-')
    """
    if value is None:
        return NONE
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def numbers(value: float, *others: float) -> list[str]:
    """Objective values that belong together, all with the decimals of the first.

    >>> numbers(0.0189, 0.00758, 0.034), numbers(0.00123, -0.01)
    (['0.019', '0.008', '0.034'], ['0.00123', '-0.01000'])
    """
    first = number(value)
    if "e" in first:
        return [first, *map(number, others)]
    decimals = len(first.partition(".")[2])
    return [first, *(f"{other:.{decimals}f}" for other in others)]


def score(value: float | None) -> str:
    """A share between 0 and 1, to a tenth of a point."""
    return NONE if value is None else f"{value:.3f}"


def ranged(value: float | None, interval: tuple[float, float] | None) -> str:
    """A share with the ends of its interval, where they are known.

    >>> ranged(0.8123, (0.8, 0.82)), ranged(0.8123, None)
    ('0.812 [0.800, 0.820]', '0.812')
    """
    return (
        score(value)
        if value is None or interval is None
        else f"{score(value)} [{score(interval[0])}, {score(interval[1])}]"
    )


def signed(value: float) -> str:
    """A difference of shares in points, with its sign.

    >>> signed(0.0123), signed(-0.004), signed(0.0)
    ('+1.2', '-0.4', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return text[1:] if float(text) == 0 else text
