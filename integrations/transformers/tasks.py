"""The GLUE tasks by name, as data: which columns, how many labels, which score, and where the examples lie.

Nothing here knows a model. A task is loaded from a local folder in GLUE's own layout or from the Hugging
Face hub.
"""

import csv
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

__all__ = ["Split", "Task", "TaskData", "get_task", "load_task"]

HUB_DATASET = "nyu-mll/glue"


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # a constant orders nothing; scipy would answer NaN, which no threshold can be compared with
    return float(spearmanr(labels, predictions).statistic)


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "matthews": matthews_corrcoef,
    "f1": partial(f1_score, zero_division=0.0),
    "spearman": _spearman,
}


@dataclass(frozen=True)
class Task:
    """What a model is asked, and how its answers are scored.

    Parameters
    ----------
    name : str
        The task's name on the hub, e.g. ``"sst2"``.
    columns : tuple of str
        The hub's names of the one or two text columns.
    n_labels : int
        Number of classes; 1 means regression.
    metric : str
        ``"accuracy"``, ``"matthews"`` (Matthews' correlation), ``"f1"`` (of class 1) or ``"spearman"``
        (rank correlation). Higher is better for each.

    Raises
    ------
    ValueError
        If the metric is none of these.

    Examples
    --------
    >>> get_task("stsb")
    Task(name='stsb', columns=('sentence1', 'sentence2'), n_labels=1, metric='spearman')
    """

    name: str
    columns: tuple[str, ...]
    n_labels: int
    metric: str

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise ValueError(f"Task: metric is {self.metric!r}; pass one of {', '.join(_METRICS)}")

    @property
    def is_regression(self) -> bool:
        """Whether the labels are real numbers instead of classes."""
        return self.n_labels == 1

    def score(self, predictions: ArrayLike, labels: ArrayLike) -> float:
        """The task's metric of the predictions; higher is better, 1 is perfect.

        Parameters
        ----------
        predictions : array_like, shape (n,)
            Class ids, or real values for a regression.
        labels : array_like, shape (n,)
            What was right.

        Returns
        -------
        float
            0 where the predictions are constant and the metric is a correlation.

        Raises
        ------
        TypeError
            If a classification is given real numbers instead of class ids.
        ValueError
            If the two are not one-dimensional of one length, are empty, or the predictions hold NaN or
            infinities.

        Examples
        --------
        >>> get_task("sst2").score([1, 0, 1, 1], [1, 0, 0, 1])
        0.75
        """
        guessed, right = np.asarray(predictions), np.asarray(labels)
        if guessed.ndim != 1 or guessed.shape != right.shape or guessed.size == 0:
            raise ValueError(
                f"score: predictions have shape {guessed.shape} and labels {right.shape}; pass one value per "
                "example in both (class ids: the argmax of the logits)"
            )
        if not self.is_regression and guessed.dtype.kind not in "iub":
            raise TypeError(
                f"score: predictions of {self.name!r} are {guessed.dtype}; pass integer class ids (the "
                "argmax of the logits)"
            )
        if not np.isfinite(guessed).all():
            raise ValueError("score: predictions hold NaN or infinities; the model that made them has diverged")
        return float(_METRICS[self.metric](right, guessed))


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Examples in the order of their file.

    Parameters
    ----------
    texts : tuple of tuple of str
        One entry per example, of one or two sentences.
    labels : numpy.ndarray, shape (n,)
        int64 class ids, or float64 values for a regression.

    Raises
    ------
    ValueError
        If there are not as many labels as texts.

    Examples
    --------
    >>> split = Split((("good",), ("bad",), ("fine",), ("poor",)), np.array([1, 0, 1, 0]))
    >>> split
    Split(4 examples)
    >>> split.spread(2).texts
    (('good',), ('fine',))
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.texts),):
            raise ValueError(
                f"Split: labels have shape {self.labels.shape} for {len(self.texts)} texts; pass one label per text"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Split({len(self)} examples)"

    def spread(self, n: int) -> "Split":
        """``n`` examples at equal distance, every ``len(split) // n``-th from the first on.

        GLUE's files are often ordered by source, so their head is no sample of the whole.

        Raises
        ------
        ValueError
            If ``n`` is not between 1 and the number of examples.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"spread: n is {n}; pass 1 to {len(self)}, the number of examples")
        return self._select(range(0, len(self), len(self) // n)[:n])

    def hold_out(self, n: int, seed: int = 0) -> tuple["Split", "Split"]:
        """The split without ``n`` examples drawn at random, and those ``n``: ``(rest, held_out)``.

        The dev split is never used to choose what is then reported on it: a part held out of the train split
        chooses. Both parts keep the order of the file.

        Raises
        ------
        ValueError
            If either part would be empty.

        Examples
        --------
        >>> rest, held_out = Split(tuple((w,) for w in "abcde"), np.zeros(5, int)).hold_out(2)
        >>> len(rest), len(held_out), set(rest.texts) & set(held_out.texts)
        (3, 2, set())
        """
        if not 1 <= n < len(self):
            raise ValueError(f"hold_out: n is {n}; pass 1 to {len(self) - 1}, so that both parts have examples")
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self._select(sorted(order[n:])), self._select(sorted(order[:n]))

    def _select(self, indices: Sequence[int]) -> "Split":
        return Split(tuple(self.texts[i] for i in indices), self.labels[list(indices)])


@dataclass(frozen=True)
class TaskData:
    """A task with the examples to train on and those to report on.

    Parameters
    ----------
    task : Task
    train, dev : Split
        GLUE's own; for MNLI, dev is the matched one.
    """

    task: Task
    train: Split
    dev: Split


@dataclass(frozen=True)
class _Layout:
    """Two tab-separated files and where in them the texts and the label stand."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ("0", "1")  # as the file spells them, in the hub's order; () for a regression
    train: str = "train.tsv"
    dev: str = "dev.tsv"
    header: tuple[str, ...] = ()  # the columns' names where the file's first line does not give them
    drops_short_rows: bool = False


@dataclass(frozen=True)
class _Record:
    task: Task
    layouts: tuple[_Layout, ...]
    hub_dev: str = "validation"


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

_RECORDS = {
    record.task.name: record
    for record in (
        _Record(
            Task("cola", ("sentence",), 2, "matthews"),
            (_Layout(("sentence",), "label", header=("source", "label", "star", "sentence")),),
        ),
        _Record(Task("sst2", ("sentence",), 2, "accuracy"), (_Layout(("sentence",), "label"),)),
        _Record(Task("mrpc", _PAIR, 2, "f1"), (_Layout(("#1 String", "#2 String"), "Quality"),)),
        _Record(
            Task("stsb", _PAIR, 1, "spearman"),
            (
                _Layout(_PAIR, "score", classes=()),
                _Layout(  # the original STS benchmark; further columns, where there are any, name the source
                    _PAIR,
                    "score",
                    classes=(),
                    train="train.csv",
                    dev="dev.csv",
                    header=("genre", "file", "year", "index", "score", "sentence1", "sentence2"),
                ),
            ),
        ),
        _Record(
            Task("qqp", ("question1", "question2"), 2, "f1"),
            # a few of GLUE's own rows are torn by a line break inside a question; the hub's copy drops them
            (_Layout(("question1", "question2"), "is_duplicate", drops_short_rows=True),),
        ),
        _Record(
            Task("mnli", ("premise", "hypothesis"), 3, "accuracy"),
            (_Layout(_PAIR, "gold_label", ("entailment", "neutral", "contradiction"), dev="dev_matched.tsv"),),
            hub_dev="validation_matched",
        ),
        _Record(
            Task("qnli", ("question", "sentence"), 2, "accuracy"),
            (_Layout(("question", "sentence"), "label", _ENTAILMENT),),
        ),
        _Record(Task("rte", _PAIR, 2, "accuracy"), (_Layout(_PAIR, "label", _ENTAILMENT),)),
        _Record(Task("wnli", _PAIR, 2, "accuracy"), (_Layout(_PAIR, "label"),)),
    )
}


def get_task(name: str) -> Task:
    """The GLUE task of that name on the hub.

    Raises
    ------
    ValueError
        If there is none; the message lists the names.

    Examples
    --------
    >>> get_task("mnli").n_labels, get_task("stsb").is_regression
    (3, True)
    """
    if name not in _RECORDS:
        near = difflib.get_close_matches(_folded(name), _RECORDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"get_task: name is {name!r}{hint}; pass one of {', '.join(_RECORDS)}")
    return _RECORDS[name].task


def load_task(name: str, data_dir: str | Path | None = None) -> TaskData:
    r"""The examples of a GLUE task, from a local folder or from the hub.

    Parameters
    ----------
    name : str
        The task's name on the hub, e.g. ``"sst2"``.
    data_dir : str or Path, optional
        A folder with the task's files in GLUE's own layout, or one with a folder per task (``SST-2`` or
        ``sst2``). For STS-B the original benchmark's ``train.csv`` and ``dev.csv`` serve as well. None
        downloads from the Hugging Face hub.

    Returns
    -------
    TaskData

    Raises
    ------
    ValueError
        If the task is unknown, its files are not found, a row is not as GLUE writes it (the message names
        file and line), or the hub cannot be reached.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for file in ("train.tsv", "dev.tsv"):
    ...         _ = Path(folder, file).write_text("sentence\tlabel\na fine film\t1\n", encoding="utf-8")
    ...     data = load_task("sst2", folder)
    >>> data.train.texts, data.train.labels.tolist()
    ((('a fine film',),), [1])
    """
    record = _RECORDS[get_task(name).name]
    return _from_hub(record) if data_dir is None else _from_folder(record, Path(data_dir))


def _from_hub(record: _Record) -> TaskData:
    from datasets import load_dataset  # slow to import, and a local folder does without

    task = record.task
    try:
        dataset = load_dataset(HUB_DATASET, task.name)
    except (
        OSError,
        ValueError,
    ) as error:  # no connection, no such repository; offline with another task cached
        raise ValueError(
            f"load_task: {task.name!r} could not be had from the Hugging Face hub ({error}); pass data_dir, "
            "a folder with GLUE's files"
        ) from error
    train, dev = (
        Split(
            tuple(zip(*(dataset[part][column] for column in task.columns), strict=True)),
            np.array(dataset[part]["label"], dtype=_label_dtype(task)),
        )
        for part in ("train", record.hub_dev)
    )
    return TaskData(task, train, dev)


def _from_folder(record: _Record, root: Path) -> TaskData:
    task = record.task
    named = sorted(d for d in root.iterdir() if _folded(d.name) == task.name) if root.is_dir() else []
    looked_for = []
    for folder in [*named, root]:
        for layout in record.layouts:
            paths = folder / layout.train, folder / layout.dev
            if all(path.is_file() for path in paths):
                train, dev = (_read(path, layout, task) for path in paths)
                return TaskData(task, train, dev)
            looked_for.append(f"{paths[0]} with {paths[1].name}")
    if not named:
        looked_for.insert(0, f"the folder {root / task.name}")
    raise ValueError(
        f"load_task: data_dir holds no files of {task.name!r}, looked for {', '.join(looked_for)}; pass the "
        "folder that holds them, or leave data_dir out to download them from the Hugging Face hub"
    )


def _read(path: Path, layout: _Layout, task: Task) -> Split:
    texts, labels = [], []
    for line, (*sentences, label) in _rows(path, layout):
        texts.append(tuple(sentences))
        try:
            labels.append(layout.classes.index(label) if layout.classes else float(label))
        except ValueError as error:
            wanted = f"one of {', '.join(layout.classes)}" if layout.classes else "a number"
            raise ValueError(f"load_task: {path}, line {line}: the label is {label!r}; it must be {wanted}") from error
    return Split(tuple(texts), np.array(labels, dtype=_label_dtype(task)))


def _rows(path: Path, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """Every row's line number and its texts with the label at the end; blank lines are passed over."""
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
        for row in reader:
            if len(row) > max(positions):
                yield reader.line_num, [row[position] for position in positions]
            elif row and not layout.drops_short_rows:
                raise ValueError(
                    f"load_task: {path}, line {reader.line_num}: {len(row)} columns where at least "
                    f"{max(positions) + 1} are needed; mend or remove the line"
                )


def _label_dtype(task: Task) -> type[np.generic]:
    return np.float64 if task.is_regression else np.int64


def _folded(name: str) -> str:
    """GLUE's folder names and the hub's task names, spelt alike: ``SST-2`` is ``sst2``."""
    return name.lower().replace("-", "").replace("_", "")
