"""Write a model as an ONNX file that is as small as its cores."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SMALL = 128  # entries: the constants of shapes are smaller, cores and what is contracted from them larger
_TOLERANCE = 1e-3


def export_onnx(model: nn.Module, path: str | Path, example: Mapping[str, Tensor]) -> float:
    """Write a model, compressed or dense, as an ONNX file, and compare what onnxruntime makes of it.

    The graph is that of evaluation mode and without a cache of keys and values. Its inputs are named as those of the
    model; their first axis is ``batch`` and the second one of two-dimensional inputs ``sequence``, both of any size
    that the model takes.

    Parameters
    ----------
    model : nn.Module
        Left as it is. Weights in single or double precision.
    path : str or Path
        Of the file. It appears when the comparison has succeeded, weights above 2 GB in a second file beside it.
    example : dict from name to Tensor
        Inputs as a tokenizer returns them, at least two sequences of at least three tokens: exporters take an axis of
        size 1 for a constant.

    Returns
    -------
    float
        The largest difference between onnxruntime's outputs and torch's, on the example and on a part of it, over the
        largest absolute value of the output.

    Raises
    ------
    ImportError
        Without the packages onnx, onnxscript and onnxruntime.
    TypeError, ValueError
        If the model has weights in half precision, or the example has an axis too small.
    RuntimeError
        If the outputs differ by more than 1e-3.

    Notes
    -----
    Cores stay cores, each written once: a low-rank layer is two ``MatMul`` nodes, an interleaved one that multiplies
    densely the contraction of its cores before one ``MatMul``. onnxruntime contracts them when it loads the file, once,
    and holds the dense weight from then on. ``torch.onnx.export`` by itself folds products of small cores into the
    file, once per use of the layer, which can make that of a small model larger than the dense one.

    Examples
    --------
    >>> import tempfile, transformers
    >>> from tnmpo.integrations.transformers import MPOConfig, compress
    >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    >>> model = transformers.BertModel(transformers.BertConfig(**sizes))
    >>> report = compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(model, f"{folder}/model.onnx", {"input_ids": torch.ones(2, 4, dtype=torch.long)}) < 1e-3
    True
    """
    _check(model, example)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _at_rest(model), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder, path.name)
        _program(model, example).save(str(part))
        difference = max(_difference(model, part, inputs) for inputs in (example, _part_of(example)))
        if not difference <= _TOLERANCE:
            raise RuntimeError(
                f"export_onnx: onnxruntime's outputs differ from torch's by {difference:.1e} of the largest, expected "
                f"at most {_TOLERANCE:g}; nothing was written to {path}"
            )
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == part):  # the graph last
            file.replace(path.parent / file.name)
    return difference


def _check(model: nn.Module, example: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"model: {name} is {parameter.dtype}, which onnxruntime hardly computes in; export model.float()"
            )
    if not example:
        raise ValueError("example: got no inputs, expected tensors by name, such as a tokenizer returns")
    for name, value in example.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"example[{name!r}]: got {type(value).__name__}, expected a tensor; tokenize with return_tensors='pt'"
            )
        if value.ndim < 1 or len(value) < 2 or (value.ndim == 2 and value.shape[1] < 3):
            raise ValueError(
                f"example[{name!r}]: got shape {tuple(value.shape)}, expected at least 2 sequences of at least 3 "
                "tokens; an exporter takes an axis of size 1 for a constant"
            )


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and with configurations that ask for no cache; both are put back."""
    modes = {module: module.training for module in model.modules()}
    configs: list[Any] = [module.config for module in modes if hasattr(module, "config")]
    caching = [config for config in configs if getattr(config, "use_cache", False)]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, mode in modes.items():
            module.training = mode


def _program(model: nn.Module, example: Mapping[str, Tensor]) -> Any:
    """The ONNX program with shapes computed beforehand and weights as they are."""
    try:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
        from onnxscript import optimizer
    except ImportError as error:
        raise _missing(error) from error
    axes = {name: {0: "batch", 1: "sequence"} if value.ndim == 2 else {0: "batch"} for name, value in example.items()}
    with warnings.catch_warnings():
        # inputs that share an axis, and a deprecation inside of torch itself
        warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used")
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).* is deprecated")
        program: Any = torch.onnx.export(
            model, (), kwargs=dict(example), dynamo=True, dynamic_shapes=axes, optimize=False, verbose=False
        )
    ClearMetadataAndDocStringPass()(program.model)  # source lines of every node, as large as a small model
    optimizer.optimize(program.model, input_size_limit=_SMALL, output_size_limit=_SMALL)
    return program


def _difference(model: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> float:
    """Of all outputs, relative to the largest entry of each."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
    with torch.no_grad():
        outputs = torch.utils._pytree.tree_leaves(model(**inputs))
    expected = [output.cpu().numpy() for output in outputs if isinstance(output, Tensor)]
    return max(
        float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(other.dtype).tiny))
        for one, other in zip(found, expected, strict=True)
    )


def _part_of(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One sequence less its last token: sizes that the exporter has not seen."""
    return {name: value[:1, :-1] if value.ndim == 2 else value[:1] for name, value in example.items()}


def _missing(error: ImportError) -> ImportError:
    return ImportError(
        f"export_onnx: {error}; it needs onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
    )
