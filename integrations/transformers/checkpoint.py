"""Save a compressed model and load it again, in transformers' own format, with a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from torch import nn

from .manifest import describe
from .report import parameter_report
from .targets import mpo_layers

_CARD = "README.md"
_MARK = "<!-- written by tnmpo -->"


def save(model: nn.Module, folder: str | Path, tokenizer: Any = None, **options: Any) -> None:
    """Write a model of transformers, compressed or dense, into a folder.

    Stock ``save_pretrained`` writes the same files; this adds a model card, which says what a reload needs, and
    replaces a whole folder at once: it is written beside and renamed.

    Parameters
    ----------
    model : PreTrainedModel
    folder : str or Path
        Made where it is missing. The weights of an earlier save go, other files stay.
    tokenizer : transformers tokenizer, optional
        Saved beside.
    **options
        Of ``save_pretrained``, e.g. ``max_shard_size``.

    Raises
    ------
    TypeError
        If the model has no configuration of transformers.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a model of transformers; "
            "save others with safetensors.torch.save_model"
        )
    with written_beside(Path(folder)) as part:
        model.save_pretrained(part, **options)
        for file in part.iterdir():
            shutil.copymode(part / "config.json", file)  # safetensors lets only the owner read its files
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        if any(True for _ in mpo_layers(model)):
            model_card(model).save(part / _CARD)


def load(folder: str | Path, **options: Any) -> Any:
    """Read back what ``save`` or ``save_pretrained`` wrote of a compressed model, bit for bit, and check it.

    Parameters
    ----------
    folder : str or Path
        Or the name of a compressed model on the Hugging Face hub.
    **options
        Of ``from_pretrained``, e.g. ``dtype`` or ``attn_implementation``.

    Returns
    -------
    PreTrainedModel
        Of the class that was saved, in evaluation mode.

    Raises
    ------
    ValueError
        If the folder holds no compressed model, or its weights are not exactly those of its layers.
    """
    if not is_checkpoint(folder):
        raise ValueError(
            f"folder: {folder} holds no model that tnmpo saved; for others use transformers' from_pretrained"
        )
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = class_named((config.architectures or ["none"])[0])
    try:
        # mismatched weights come back in the information, and by name in the error below
        model, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ValueError(f"folder: a file of weights in {folder} is damaged ({error}); save the model anew") from error
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"folder: the weights in {folder} do not fit their description: {reason}") from error
    absent = config.quantization_config["layers"].keys() - describe(model).keys()
    if absent:
        raise ValueError(
            f"folder: {folder} describes the layer {min(absent)}, which a {cls.__name__} does not have; save it anew"
        )
    wrong = {name: sorted(keys) for name, keys in info.items() if keys}
    if wrong:
        raise ValueError(
            f"folder: the weights in {folder} do not fit their description: "
            + "; ".join(f"{name.replace('_', ' ')} {', '.join(map(str, keys[:5]))}" for name, keys in wrong.items())
        )
    return model


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder (or a model on the hub) is a compressed one."""
    try:
        values, _ = transformers.PreTrainedConfig.get_config_dict(folder)
    except (OSError, ValueError):
        return False
    return (values.get("quantization_config") or {}).get("quant_method") == "mpo"


def write_text(path: str | Path, text: str) -> None:
    """Write a small file beside and rename it, so that it is never half there."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when all its files are complete.

    Files of the old folder that are neither weights nor written again move along.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    part = outer / "part"  # with the usual permissions: the outer one is its owner's alone
    try:
        part.mkdir()
        yield part
        if folder.exists():
            for file in folder.iterdir():
                if not _is_replaced(file, part):
                    _copy(file, part / file.name)
            os.replace(folder, outer / "old")
        os.replace(part, folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _is_replaced(file: Path, part: Path) -> bool:
    if file.name == _CARD and (part / _CARD).exists():
        return _MARK in file.read_text(encoding="utf-8")  # a card that somebody has rewritten is theirs
    is_weights = ".safetensors" in file.name and file.is_file()
    return is_weights or (part / file.name).exists()


def _copy(file: Path, target: Path) -> None:
    if file.is_dir():
        shutil.copytree(file, target)
    else:
        shutil.copy2(file, target)


def class_named(name: str) -> Any:
    """The model class of transformers with that name; a file cannot name anything else."""
    found = known_class(name)
    if found is None:
        raise ValueError(f"folder: its config.json names the class {name!r}, which transformers does not have")
    return found


def known_class(name: str) -> Any:
    """The same, or None."""
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def model_card(model: transformers.PreTrainedModel) -> ModelCard:
    cls = type(model).__name__
    counts = parameter_report(model)
    layers = list(mpo_layers(model))
    dense = counts.total + sum(
        layer.weight_shape[0] * layer.weight_shape[1] - layer.mpo.n_parameters for _, layer, _ in layers
    )
    data = ModelCardData(library_name="transformers", tags=["tnmpo", "matrix-product-operator", "compression"])
    return ModelCard(f"""---
{data.to_yaml()}
---
{_MARK}

# A compressed {cls}

{len(layers)} weight matrices of this model are matrix product operators, made with tnmpo: the model has
{counts.total:,} parameters, its dense form {dense:,}.

**It needs the package `tnmpo` with its extra `transformers`, imported before the model is loaded.** Without the import,
transformers only warns that it does not know the quantization type `mpo`, and gives the layers random weights.

```python
import tnmpo.integrations.transformers  # without this line the weights would be random
from transformers import {cls}

model = {cls}.from_pretrained("path/of/this/folder")
```

`tnmpo.integrations.transformers.load(folder)` does the same and checks that every weight was found;
`tnmpo.integrations.transformers.merge(model)` gives the dense model.
""")
