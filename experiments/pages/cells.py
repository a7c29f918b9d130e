"""Numbers and text of tables, for eyes and for files."""

from __future__ import annotations

import csv
import io
import math

from experiments.pages.parts import Table

Cell = str | float | int | bool | None
MISSING = "–"  # noqa: RUF001 (the dash that tables use)


def shown(cell: Cell, digits: int) -> str:
    """A cell as it is read: thousands apart, ``digits`` significant digits, a true minus sign."""
    if cell is None:
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    return _number(cell, digits).replace("-", "\N{MINUS SIGN}")


def _number(value: float, digits: int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    before = math.floor(math.log10(abs(value))) + 1
    if before < -3:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - before)}f}"


def sort_key(cell: Cell) -> str:
    """What the page's script sorts by; empty cells always come last."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell if isinstance(cell, str) else repr(float(cell))


def numeric(table: Table, column: int) -> bool:
    """Whether a column holds numbers and nothing else that is shown."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)


def as_csv(table: Table) -> bytes:
    """The table with full precision; an empty cell is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return file.getvalue().encode()
