"""What every command shares: where it runs, where its words go, and which exit code it ends with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
import typer
from accelerate import PartialState
from rich.console import Console, RenderableType
from tqdm.auto import tqdm

WRONG_ARGUMENT, FAILURE, INTERRUPTED = 2, 1, 130


@dataclass
class Session:
    """One run of a command.

    Attributes
    ----------
    device : torch.device
    answer : dict
        What ``--json`` prints at the end.
    """

    device: torch.device
    answer: dict[str, Any] = field(default_factory=dict)
    _console: Console = field(default_factory=Console)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and says words; under ``torchrun`` only one does."""
        return PartialState().is_main_process

    def say(self, text: RenderableType) -> None:
        """Print words or a table, above the progress bars."""
        if not self.is_main:
            return
        with tqdm.external_write_mode():
            self._console.print(text, soft_wrap=isinstance(text, str), highlight=False, markup=False)


@contextmanager
def session(as_json: bool, *, resumes: bool = False, distributed: bool = False) -> Iterator[Session]:
    """Run a command's body: first line, errors in one sentence, exit codes, JSON.

    Parameters
    ----------
    as_json : bool
        All words go to standard error, and the session's ``answer`` to standard output as one JSON object at the
        end; nothing where the command failed.
    resumes : bool
        Whether the same command goes on where it was interrupted, for the message.
    distributed : bool
        Whether several processes may run it together; others are refused under ``torchrun``.

    Raises
    ------
    typer.Exit
        With 2 after a ValueError or TypeError (an argument is wrong), 1 after an error of the system or of torch (the
        disk is full, memory runs out, a package is not installed), 130 after Ctrl-C. Anything else is a fault of the
        program: it keeps its traceback, and Python exits with 1.
    """
    stdout = sys.stdout
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            current = Session(_processes().device)
            current.say(_where(current.device))
            transformers.logging.set_verbosity_error()
            count = PartialState().num_processes
            if count > 1 and not distributed:
                raise ValueError(f"torchrun: got {count} processes, expected one; only finetune runs on several")
            yield current
        except typer.Exit:
            raise
        except (ValueError, TypeError) as error:
            raise _fail(str(error), WRONG_ARGUMENT) from error
        except (OSError, RuntimeError, MemoryError, ImportError) as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise _fail(f"{type(error).__name__}: {first}", FAILURE) from error
        except KeyboardInterrupt:
            after = "start the same command again to go on" if resumes else "what was saved before is whole"
            print(f"interrupted; {after}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    if as_json and current.is_main:
        print(json.dumps(current.answer, indent=1), file=stdout)


def _processes() -> PartialState:
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and "LOCAL_RANK" in os.environ:
        # under torchrun without it, neither Accelerate nor the Trainer would join processes on CPUs
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    return PartialState(cpu=on_cpu)


def _where(device: torch.device) -> str:
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"threads: {torch.get_num_threads()}"
    return f"tnmpo on {device.type} ({name}), {'bfloat16' if on_cuda else 'float32'}"


def _fail(message: str, code: int) -> typer.Exit:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return typer.Exit(code)
