"""The GLUE tasks by name, as data: which columns, how many labels, which scores, and where the examples lie.

Nothing here knows a model. A task is loaded from a local folder in GLUE's own layout or from the Hugging
Face hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .glue_files import ENTAILMENT, LARGEST_SCORE, PAIR, Examples, folded, read_folder
from .metrics import METRICS

__all__ = ["Split", "Task", "TaskData", "get_task", "load_task"]

HUB_DATASET = "nyu-mll/glue"


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
        The main one, that ``score`` answers: ``"accuracy"``, ``"matthews"`` (Matthews' correlation), ``"f1"`` (of
        class 1), ``"spearman"`` (rank correlation) or ``"pearson"``. Higher is better for each.
    further_metrics : tuple of str
        What is reported beside it.
    classes : tuple of str
        The names of the classes in their order; a head that has the same names in another order is read by them.

    Raises
    ------
    ValueError
        If a metric is none of these.

    Examples
    --------
    >>> get_task("stsb").metric, get_task("stsb").further_metrics
    ('spearman', ('pearson',))
    """

    name: str
    columns: tuple[str, ...]
    n_labels: int
    metric: str
    further_metrics: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for metric in (self.metric, *self.further_metrics):
            if metric not in METRICS:
                raise ValueError(f"Task: metric is {metric!r}; pass one of {', '.join(METRICS)}")

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
        return self.scores(predictions, labels)[self.metric]

    def scores(self, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """Every metric that GLUE reports for the task, by name, the main one first.

        Parameters and errors are those of ``score``.

        Examples
        --------
        >>> get_task("mrpc").scores([1, 1, 1, 0], [1, 1, 0, 0])
        {'f1': 0.8, 'accuracy': 0.75}
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
        return {name: float(METRICS[name](right, guessed)) for name in (self.metric, *self.further_metrics)}

    def majority_score(self, split: Split) -> float:
        """The score of answering the split's most frequent class throughout.

        A model that scores just this has learned nothing that the score shows, as is usual on WNLI. A correlation,
        and so every regression, has 0.

        Examples
        --------
        >>> get_task("wnli").majority_score(Split((("a", "b"),) * 4, np.array([0, 0, 1, 0])))
        0.75
        """
        if self.is_regression:
            return 0.0
        values, counts = np.unique(split.labels, return_counts=True)
        return self.score(np.full_like(split.labels, values[counts.argmax()]), split.labels)


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

    def spread(self, n: int) -> Split:
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

    def hold_out(self, n: int, seed: int = 0) -> tuple[Split, Split]:
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

    def _select(self, indices: Sequence[int]) -> Split:
        return Split(tuple(self.texts[i] for i in indices), self.labels[list(indices)])


@dataclass(frozen=True)
class TaskData:
    """A task with the examples to train on, those to choose by and those to report on.

    Parameters
    ----------
    task : Task
    train, dev : Split
        GLUE's own; for MNLI, dev is the matched one.
    dev_mismatched : Split, optional
        MNLI's other one.
    validation : Split, optional
        A part held out of the train split: it chooses (epochs, ranks, seeds), so that dev, which is reported on, never
        does. See ``hold_out``.
    """

    task: Task
    train: Split
    dev: Split
    dev_mismatched: Split | None = None
    validation: Split | None = None

    @property
    def dev_splits(self) -> dict[str, Split]:
        """The splits to report on, by the name of their file: one, or MNLI's two.

        Examples
        --------
        >>> split = Split((("a", "b"),), np.array([1]))
        >>> list(TaskData(get_task("mnli"), split, split, split).dev_splits)
        ['dev_matched', 'dev_mismatched']
        """
        if self.dev_mismatched is None:
            return {"dev": self.dev}
        return {"dev_matched": self.dev, "dev_mismatched": self.dev_mismatched}

    def hold_out(self, n: int, seed: int = 0) -> TaskData:
        """The same with ``n`` random examples of the train split as ``validation``.

        Raises
        ------
        ValueError
            If either part would be empty.
        """
        train, validation = self.train.hold_out(n, seed)
        return replace(self, train=train, validation=validation)


_TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), 2, "matthews", classes=("unacceptable", "acceptable")),
        Task("sst2", ("sentence",), 2, "accuracy", classes=("negative", "positive")),
        Task("mrpc", PAIR, 2, "f1", ("accuracy",), ("not_equivalent", "equivalent")),
        Task("stsb", PAIR, 1, "spearman", ("pearson",)),
        Task("qqp", ("question1", "question2"), 2, "f1", ("accuracy",), ("not_duplicate", "duplicate")),
        Task("mnli", ("premise", "hypothesis"), 3, "accuracy", classes=("entailment", "neutral", "contradiction")),
        Task("qnli", ("question", "sentence"), 2, "accuracy", classes=ENTAILMENT),
        Task("rte", PAIR, 2, "accuracy", classes=ENTAILMENT),
        Task("wnli", PAIR, 2, "accuracy", classes=ENTAILMENT[::-1]),
    )
}

_HUB_DEV = {"mnli": ("validation_matched", "validation_mismatched")}  # the others have one


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
    if name not in _TASKS:
        near = difflib.get_close_matches(folded(name), _TASKS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"get_task: name is {name!r}{hint}; pass one of {', '.join(_TASKS)}")
    return _TASKS[name]


def load_task(name: str, data_dir: str | Path | None = None, *, hold_out: int = 0, seed: int = 0) -> TaskData:
    r"""The examples of a GLUE task, from a local folder or from the hub.

    Parameters
    ----------
    name : str
        The task's name on the hub, e.g. ``"sst2"``.
    data_dir : str or Path, optional
        A folder with the task's files in GLUE's own layout, or one with a folder per task (``SST-2`` or
        ``sst2``). For STS-B the original benchmark's ``train.csv`` and ``dev.csv`` serve as well. None
        downloads from the Hugging Face hub.
    hold_out : int
        How many examples of the train split become ``validation``, which chooses in the place of dev; 0 leaves the
        train split whole.
    seed : int
        Of the draw.

    Returns
    -------
    TaskData

    Raises
    ------
    ValueError
        If the task is unknown, its files are not found, a row is not as GLUE writes it (the message names
        file and line), the hub cannot be reached, or no fewer examples are held out than there are.

    Notes
    -----
    Quote characters are text. QQP's few rows torn by a line break are dropped, as on the hub.

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
    task = get_task(name)
    parts = _from_hub(task) if data_dir is None else read_folder(task.name, Path(data_dir))
    data = TaskData(task, *(Split(tuple(texts), np.array(labels, _label_dtype(task))) for texts, labels in parts))
    return data.hold_out(hold_out, seed) if hold_out else data


def _from_hub(task: Task) -> list[Examples]:
    from datasets import load_dataset  # slow to import, and a local folder does without

    try:
        dataset = load_dataset(HUB_DATASET, task.name)
    except (OSError, ValueError) as error:  # no connection, no such repository; offline with another task cached
        raise ValueError(
            f"load_task: {task.name!r} could not be had from the Hugging Face hub ({error}); pass data_dir, "
            "a folder with GLUE's files"
        ) from error
    parts = ("train", *_HUB_DEV.get(task.name, ("validation",)))
    return [_from_part(task, part, dataset[part]) for part in parts]


def _from_part(task: Task, part: str, rows: Any) -> Examples:
    labels = list(rows["label"])
    largest = LARGEST_SCORE if task.is_regression else task.n_labels - 1
    for number, label in enumerate(labels):
        if not 0 <= label <= largest:  # the hub's own mark of a hidden label is -1
            raise ValueError(
                f"load_task: {HUB_DATASET}, {task.name}, {part}, example {number}: the label is {label}; "
                f"it must be from 0 to {largest:g}"
            )
    return list(zip(*(rows[column] for column in task.columns), strict=True)), labels


def _label_dtype(task: Task) -> type[np.generic]:
    return np.float64 if task.is_regression else np.int64
