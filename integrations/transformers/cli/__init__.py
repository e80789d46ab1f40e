"""The command line ``tnmpo``."""

from __future__ import annotations

import typer

from . import adapter
from .runs import demo, demo_table, reproduce, run
from .training import evaluate, finetune, squeeze
from .weights import compress, inspect, merge

__all__ = ["app", "demo_table", "main"]

app = typer.Typer(
    help="Write a model's weights as matrix product operators: compress, fine-tune lightly, squeeze.\n\n"
    "Start with `tnmpo demo`, or with a model of your own: compress, finetune --lfa, squeeze, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (demo, inspect, compress, finetune, squeeze, evaluate, merge, run, reproduce):
    app.command()(command)
app.add_typer(adapter.app, name="adapter")


def main() -> None:
    """Entry point of the ``tnmpo`` command."""
    app()
