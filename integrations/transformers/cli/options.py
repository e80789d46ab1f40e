"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A model folder, or a name on the Hugging Face hub.")]
Compressed = Annotated[str, typer.Argument(help="The folder of a compressed model.")]
Output = Annotated[Path, typer.Argument(help="The folder for the result; it appears when it is complete.")]
TaskName = Annotated[str, typer.Option("--task", help="A task by GLUE's name: sst2, stsb, ...")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="A local folder with the task's files; the hub where it is left out.")
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option(help="Texts per step and device.")]
MaxLength = Annotated[int, typer.Option(help="Tokens; longer texts are cut.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object on standard output, words on standard error."),
]


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2`` as numbers."""
    try:
        return tuple(int(entry) for entry in text.split(","))
    except ValueError:
        raise ValueError(f"seeds: got {text!r}, expected whole numbers with commas, e.g. 0,1,2") from None
