"""The rows of a suite as tables in the terminal."""

from __future__ import annotations

from typing import Any

from page import duration, quantity
from rich.console import Console
from rich.table import Table


def show(console: Console, suite: str, rows: list[dict[str, Any]]) -> None:
    """One table of seconds a case, then the numbers and goals."""
    timed = [row for row in rows if "seconds" in row]
    for case in dict.fromkeys(row["case"] for row in timed):
        table = Table("contender", "time", "ratio", "against", "error", "limit", title=f"{suite}: {case}")
        for row in timed:
            if row["case"] == case:
                table.add_row(*_cells(row))
        console.print(table)
    judged = Table("case", "what", "measured", "goal", "met", title=f"{suite}: numbers and goals")
    for row in rows:
        if "measured" in row:
            met = {True: "[green]yes", False: "[red]missed", None: ""}[row.get("met")]
            judged.add_row(row["case"], row["contender"], quantity(row), row.get("goal", ""), met)
    if judged.row_count:
        console.print(judged)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["contender"],
        duration(row["seconds"]) + (", once" if row.get("rounds") == 1 else ""),
        f"{row['ratio']:.2f}" if "ratio" in row else "",
        row.get("against", ""),
        f"{row['error']:.2e}" if "error" in row else "",
        duration(row["limit"]) if "limit" in row else "",
    ]
