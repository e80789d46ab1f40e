"""All benchmarks, or some, in one process: tables as they come, results as JSON, the page in docs/.

.venv/bin/python tests/benchmarks/run.py [SUITE ...] [--quick] [--threads N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
# name -> module with ``rows(quick, device=...)``; in this order they run and stand on the page
SUITES = {
    "decompose": "decompose",
    "decompose-large": "decompose_large",
    "growth": "growth",
    "layers": "layers",
    "embedding": "embedding",
    "training": "training",
    "compress": "compress",
    "cost-model": "cost_model",
    "import": "imports",
}
SEED = 0


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"by default all: {', '.join(SUITES)}")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; writes no file by default"
    )
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="results (default docs/benchmarks.json)")
    parser.add_argument("--page", type=Path, help="their page (default docs/benchmarks.md)")
    chosen = parser.parse_args(argv)
    if unknown := [name for name in chosen.suites if name not in SUITES]:
        parser.error(f"SUITE: got {', '.join(unknown)}, expected some of {', '.join(SUITES)}")
    if chosen.threads < 1:
        parser.error(f"--threads: got {chosen.threads}, expected a positive integer")
    chosen.suites = [name for name in SUITES if name in chosen.suites] or list(SUITES)
    if not chosen.quick:
        chosen.json = chosen.json or DOCS / "benchmarks.json"
        chosen.page = chosen.page or DOCS / "benchmarks.md"
    return chosen


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(argv)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(chosen.threads)  # read when numpy and torch are imported, here and in fresh processes
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' own, which would tear the tables

    import torch
    from limits import measured_rates
    from machine import describe
    from rich.console import Console
    from show import show

    torch.set_num_threads(chosen.threads)
    console, missed = Console(), 0
    measured = {
        "quick": chosen.quick,
        "machine": describe(chosen.device, SEED, command_of(chosen)),
        "rates": measured_rates(chosen.device, 256 if chosen.quick else 2048).to_dict(),
    }
    for number, name in enumerate(chosen.suites, start=1):
        try:
            with console.status("") as status:
                rows = []
                for row in importlib.import_module(SUITES[name]).rows(chosen.quick, device=chosen.device):
                    rows.append(row.to_dict())
                    status.update(f"{number} of {len(chosen.suites)}, {name}: {row.case}, {row.contender}")
        except KeyboardInterrupt:
            console.print(f"interrupted in {name}; the suites before it are kept")
            return 130
        show(console, name, rows)
        missed += sum(row.get("met") is False for row in rows)
        store(chosen, name, {"module": SUITES[name], **measured, "rows": rows})
    console.print(f"{missed} goals missed" if missed else "every goal met")
    return 0


def store(chosen: argparse.Namespace, name: str, entry: dict[str, object]) -> None:
    """Into the results and their page, where these are wanted; each device has its own."""
    from page import update, write_page

    if chosen.json:
        title = name if chosen.device == "cpu" else f"{name}, {chosen.device}"
        results = update(chosen.json, title, entry, tuple(SUITES))
        if chosen.page:
            write_page(chosen.page, results)


def command_of(chosen: argparse.Namespace) -> str:
    """The options that decide what is measured, not those that say where it goes."""
    words = [*(chosen.suites if len(chosen.suites) < len(SUITES) else []), *(["--quick"] if chosen.quick else [])]
    return " ".join(["run.py", *words, "--threads", str(chosen.threads), "--device", chosen.device])


if __name__ == "__main__":
    sys.exit(main())
