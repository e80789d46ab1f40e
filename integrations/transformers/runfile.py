"""A whole run as one YAML file: which keys it may have, what they default to, and how it is read.

Nothing here loads a model: a file is checked as a whole before any work starts.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .config import MPOConfig
from .settings import (
    CalibrationSettings,
    EvaluateSettings,
    FinetuneSettings,
    SqueezeSettings,
    TaskSettings,
    plain,
    setting_names,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run; a stage that is None is left out.

    Parameters
    ----------
    model : str
        A folder or a name on the hub.
    output : Path
        Gets one folder a stage, and ``run.json``.
    task : TaskSettings, optional
        Needed by every stage but a compression without calibration.
    compress : MPOConfig, optional
    calibration : CalibrationSettings, optional
        Of the compression.
    finetune : FinetuneSettings, optional
    squeeze : SqueezeSettings, optional
    evaluate : EvaluateSettings, optional
    """

    model: str
    output: Path
    task: TaskSettings | None = None
    compress: MPOConfig | None = None
    calibration: CalibrationSettings | None = None
    finetune: FinetuneSettings | None = None
    squeeze: SqueezeSettings | None = None
    evaluate: EvaluateSettings | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values with all defaults filled in, for a JSON file."""
        sections = {name: getattr(self, name) for name in _SECTIONS}
        return {
            "model": self.model,
            "output": str(self.output),
            **({} if self.task is None else plain(self.task)),
            **{name: plain(section) for name, section in sections.items() if section is not None},
        }


_SECTIONS: dict[str, type] = {
    "compress": MPOConfig,
    "calibration": CalibrationSettings,
    "finetune": FinetuneSettings,
    "squeeze": SqueezeSettings,
    "evaluate": EvaluateSettings,
}
_STAGES = ("compress", "finetune", "squeeze", "evaluate")
_TASK = tuple(field.name for field in fields(TaskSettings))
_KEYS = ("model", "output", *_TASK, *_SECTIONS)
_WORDS: dict[Any, str] = {
    type(None): "nothing",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    tuple[int, ...]: "a list of whole numbers",
}

TEMPLATE = """\
# A run of tnmpo: start it with `tnmpo run RUN.yaml`. Started again, it goes on where it stopped.
model: bert-base-uncased    # a folder, or a name on the Hugging Face hub
output: runs/example        # gets the folders compressed, finetuned and squeezed, and run.json
task: sst2                  # by GLUE's name
# data_dir: glue            # a local folder with the task's files; the hub where it is left out
max_length: 128             # tokens; longer texts are cut

# Every section below is one stage; leave out what is not wanted. An empty one takes all defaults.
compress:                   # the names of MPOConfig
  ratio: 0.5                # parameters kept over dense ones; or rank, or tol; none of them: lossless
  shape: low_rank           # auto, low_rank or interleaved
  # target_modules: [query, key, value]
  # exclude_modules: [pooler.dense]

calibration:                # of the compression, on the task's training texts; needs no labels
  examples: 512
  count_all: true           # count the tokens of all texts for the embedding

finetune:
  steps: 2000
  # learning_rate: 2.0e-4   # by default 5e-5, and 2e-4 with lfa
  batch_size: 32
  lfa: true                 # train only the auxiliary tensors and what is no MPO
  # core_learning_rate: 2.0e-5
  # teacher: dense-sst2     # a model whose answers are learned beside the labels
  # early_stop: 3           # evaluations without a better one, on a part of train; then the best is taken
  save_steps: 500           # between checkpoints, and between evaluations with early_stop
  hold_out: 1000            # not trained on: as many as squeeze's, so that it decides on texts never seen
  seeds: [0, 1, 2]          # one run each; the first one's model is kept, mean and deviation are reported

squeeze:
  max_drop: 0.01            # how far the metric may fall, absolute
  max_steps: 20
  step: 8                   # by how much a bond is lowered
  finetune_steps: 50
  hold_out: 1000            # training examples set aside to decide on
  seed: 0

evaluate:                   # on dev, once, at the end
  batch_size: 64
"""


def read_run(path: str | Path) -> Run:
    """Read and check a run file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If the file is not there or no YAML, a key is unknown or given twice, or a value is wrong; the message names
        the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "run.yaml").write_text(TEMPLATE)
    ...     run = read_run(Path(folder, "run.yaml"))
    >>> run.compress.ratio, run.finetune.seeds, run.squeeze.criterion
    (0.5, (0, 1, 2), 'per_parameter')
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        lines = _lines(yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); `tnmpo run --template` prints one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{at}: no YAML: {getattr(error, 'problem', None) or error}") from error
    except _TwiceError as error:
        raise ValueError(f"{path}, line {error.line}: {error.key!r} is given twice; remove one") from error
    return _Reader(path, lines).run(values)


@dataclass
class _Reader:
    """Turns the values of one file into settings; every error names the file and the line."""

    path: Path
    lines: Mapping[tuple[str, ...], int]

    def run(self, values: Any) -> Run:
        if not isinstance(values, dict):
            raise ValueError(f"{self.path}: got {type(values).__name__}, expected keys such as model and output")
        self.check_keys(values, _KEYS, ())
        for name in ("model", "output"):
            if values.get(name) is None:
                raise ValueError(f"{self.path}: no {name!r}; `tnmpo run --template` prints an example")
        if not any(stage in values for stage in _STAGES):
            raise ValueError(f"{self.path}: no stage; add at least one of the sections {', '.join(_STAGES)}")
        given = {name: values[name] for name in _TASK if name in values}
        task = self.section(TaskSettings, given, ()) if "task" in values else None
        sections: dict[str, Any] = {
            name: self.section(kind, values[name], (name,)) for name, kind in _SECTIONS.items() if name in values
        }
        for name in sections:
            if task is None and name != "compress":
                raise ValueError(f"{self.at((name,))}: {name} needs a task; add e.g. `task: sst2` at the top")
        if "calibration" in sections and "compress" not in sections:
            raise ValueError(f"{self.at(('calibration',))}: calibration without compress; add a section compress")
        model, output = (self.value(name, str, values[name], (name,)) for name in ("model", "output"))
        return Run(model=model, output=Path(output), task=task, **sections)

    def section(self, kind: type, values: Any, where: tuple[str, ...]) -> Any:
        values = {} if values is None else values  # a section without keys takes all defaults
        if not isinstance(values, dict):
            raise ValueError(f"{self.at(where)}: {where[-1]}: got {values!r}, expected keys with values")
        self.check_keys(values, setting_names(kind), where)
        hints = typing.get_type_hints(kind)
        settings = {name: self.value(name, hints[name], value, (*where, name)) for name, value in values.items()}
        try:
            return kind(**settings)
        except (ValueError, TypeError) as error:
            # the message begins with the name of the setting that is wrong
            named = next((name for name in values if str(error).startswith(f"{name}:")), None)
            named = named or ("task" if kind is TaskSettings else None)
            raise ValueError(f"{self.at((*where, named) if named else where)}: {error}") from error

    def check_keys(self, values: Mapping[str, Any], known: Sequence[str], where: tuple[str, ...]) -> None:
        for key in values:
            if key in known:
                continue
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
            elsewhere = [name for name, kind in _SECTIONS.items() if key in setting_names(kind)]
            if elsewhere:
                hint = f"it belongs into {' or '.join(elsewhere)}"
            elif near:
                hint = f"near misses: {', '.join(near)}"
            else:
                hint = f"known keys: {', '.join(known)}"
            place = f" in {where[-1]}" if where else ""
            raise ValueError(f"{self.at((*where, key))}: unknown key {key!r}{place}; {hint}")

    def value(self, name: str, hint: Any, value: Any, where: tuple[str, ...]) -> Any:
        """A value as the type that its setting wants."""
        wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for kind in wanted:
            if kind is type(None) and value is None:
                return None
            if kind is bool and isinstance(value, bool):
                return value
            if kind is int and isinstance(value, int) and not isinstance(value, bool):
                return value
            if kind is float and not isinstance(value, bool) and (number := _number(value)) is not None:
                return number
            if kind is str and isinstance(value, str):
                return value
            if kind is Path and isinstance(value, str):
                return Path(value)
            if kind == tuple[int, ...] and _is_integers(value):
                return tuple(value) if isinstance(value, list) else (value,)
            if (typing.get_origin(kind) or kind) in (Sequence, Mapping, list, dict) and isinstance(value, list | dict):
                return value  # MPOConfig looks inside
        expected = " or ".join(dict.fromkeys(_WORDS.get(kind, "a list") for kind in wanted))
        raise ValueError(f"{self.at(where)}: {name}: got {value!r}, expected {expected}")

    def at(self, where: tuple[str, ...]) -> str:
        line = self.lines.get(where)
        return str(self.path) if line is None else f"{self.path}, line {line}"


class _TwiceError(Exception):
    def __init__(self, key: str, line: int) -> None:
        super().__init__(key, line)
        self.key, self.line = key, line


def _lines(node: Any, where: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """The line of every key, by its path. YAML itself would let a second key of the same name win silently."""
    found: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*where, key.value)
            line = key.start_mark.line + 1
            if path in found:
                raise _TwiceError(str(key.value), line)
            found[path] = line
            found.update(_lines(value, path))
    return found


def _number(value: Any) -> float | None:
    """YAML reads 1e-4, which has no point, as a text."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _is_integers(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)
