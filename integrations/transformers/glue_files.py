"""GLUE's tab-separated files: which columns they have, and how they are read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Examples = tuple[list[tuple[str, ...]], list[float]]  # texts and labels, in the order of their file


@dataclass(frozen=True)
class Layout:
    """Tab-separated files and where in them the texts and the label stand.

    Attributes
    ----------
    texts : tuple of str
        The names of the text columns.
    label : str
    classes : tuple of str
        As the file spells them, in the hub's order; empty for a regression.
    train : str
    dev : tuple of str
        More than one where a task is reported on several.
    header : tuple of str
        The columns' names where the file's first line does not give them.
    spare_columns : int
        How many columns a row may have beyond the header's.
    is_untidy : bool
        Whether short rows are dropped and empty texts kept, as the hub's copy does.
    """

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ("0", "1")
    train: str = "train.tsv"
    dev: tuple[str, ...] = ("dev.tsv",)
    header: tuple[str, ...] = ()
    spare_columns: int = 0
    is_untidy: bool = False


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
LARGEST_SCORE = 5.0  # of STS-B

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cola": (Layout(("sentence",), "label", header=("source", "label", "star", "sentence")),),
    "sst2": (Layout(("sentence",), "label"),),
    "mrpc": (Layout(("#1 String", "#2 String"), "Quality"),),
    "stsb": (
        Layout(PAIR, "score", classes=()),
        Layout(  # the original STS benchmark; some rows name two sources at their end
            PAIR,
            "score",
            classes=(),
            train="train.csv",
            dev=("dev.csv",),
            header=("genre", "file", "year", "index", "score", "sentence1", "sentence2"),
            spare_columns=2,
        ),
    ),
    # A few of GLUE's own rows are torn by a line break inside a question, and in two the second question is empty.
    "qqp": (Layout(("question1", "question2"), "is_duplicate", is_untidy=True),),
    "mnli": (
        Layout(
            PAIR,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            dev=("dev_matched.tsv", "dev_mismatched.tsv"),
        ),
    ),
    "qnli": (Layout(("question", "sentence"), "label", ENTAILMENT),),
    "rte": (Layout(PAIR, "label", ENTAILMENT),),
    "wnli": (Layout(PAIR, "label"),),
}


def read_folder(name: str, root: Path) -> list[Examples]:
    """The train file of a task and its dev files, from its own folder under ``root`` or from ``root`` itself.

    Raises
    ------
    ValueError
        If a file is missing, or a row is not as GLUE writes it; the message names file and line.
    """
    named = sorted(entry for entry in root.iterdir() if folded(entry.name) == name) if root.is_dir() else []
    looked_for = []
    for folder in [*named, root]:
        for layout in LAYOUTS[name]:
            paths = [folder / file for file in (layout.train, *layout.dev)]
            if all(path.is_file() for path in paths):
                return [_read(path, layout) for path in paths]
            looked_for.append(f"{paths[0]} with {' and '.join(layout.dev)}")
    if not named:
        looked_for.insert(0, f"the folder {root / name}")
    raise ValueError(
        f"load_task: data_dir holds no files of {name!r}, looked for {', '.join(looked_for)}; pass the "
        "folder that holds them, or leave data_dir out to download them from the Hugging Face hub"
    )


def folded(name: str) -> str:
    """GLUE's folder names and the hub's task names, spelt alike: ``SST-2`` is ``sst2``."""
    return name.lower().replace("-", "").replace("_", "")


def _read(path: Path, layout: Layout) -> Examples:
    texts, labels = [], []
    try:
        for place, (*sentences, label) in _rows(path, layout):
            _check_texts(place, sentences, layout)
            texts.append(tuple(sentences))
            labels.append(_label(place, label, layout))
    except UnicodeDecodeError as error:
        raise ValueError(f"load_task: {path}: not UTF-8 ({error}); save it as UTF-8") from error
    if not texts:
        raise ValueError(f"load_task: {path}: no examples; pass a data_dir with GLUE's own files")
    return texts, labels


def _check_texts(place: str, sentences: list[str], layout: Layout) -> None:
    for column, sentence in zip(layout.texts, sentences, strict=True):
        if not sentence.strip() and not layout.is_untidy:
            raise ValueError(f"load_task: {place}: the text of column {column} is empty; mend or remove the line")


def _label(place: str, label: str, layout: Layout) -> float:
    if layout.classes:
        if label not in layout.classes:
            raise ValueError(
                f"load_task: {place}: the label is {label!r}; it must be one of {', '.join(layout.classes)}"
            )
        return layout.classes.index(label)
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST_SCORE:
        raise ValueError(
            f"load_task: {place}: the label is {label!r}; it must be a number between 0 and {LARGEST_SCORE:g}"
        )
    return value


def _rows(path: Path, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """Every row's place, and its texts with the label at the end; blank lines are passed over."""
    # utf-8-sig: MRPC's files begin with a byte order mark
    with path.open(encoding="utf-8-sig", newline="") as file:
        # quoting off: the texts hold bare quote characters
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = layout.header or tuple(next(reader, ()))
        wanted = (*layout.texts, layout.label)
        if missing := [column for column in wanted if column not in header]:
            raise ValueError(
                f"load_task: {path}, line 1: no column {', '.join(missing)} in "
                f"{', '.join(header) or 'no header'}; pass a data_dir with GLUE's own files"
            )
        positions = [header.index(column) for column in wanted]
        most = len(header) + layout.spare_columns
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if len(header) <= len(row) <= most:
                yield place, [row[position] for position in positions]
            elif row and not (layout.is_untidy and len(row) < len(header)):
                expected = f"{len(header)} to {most}" if layout.spare_columns else f"{most}"
                raise ValueError(
                    f"load_task: {place}: {len(row)} columns, expected {expected} ({', '.join(header)}); "
                    "mend or remove the line"
                )
