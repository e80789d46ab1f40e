"""What a compressed model is asked to learn from the dense one: its answers, or its embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100  # the label of positions that no loss counts, everywhere in transformers


def distillation_loss(
    student: nn.Module,
    answer: Any,
    target: Any,
    inputs: dict[str, Tensor],
    *,
    temperature: float = 2.0,
    n_items: Tensor | int | None = None,
) -> Tensor:
    """How far a student's output is from its teacher's, on one batch.

    Parameters
    ----------
    student : nn.Module
        Only its class and configuration are looked at.
    answer, target : output of a model of transformers
        The student's and the teacher's.
    inputs : dict
        The batch; of it ``labels`` and ``attention_mask`` say which positions count.
    temperature : float
        Logits are divided by it.
    n_items : int or scalar tensor, optional
        What the sum over rows or positions is divided by; by default their number in this batch.

    Returns
    -------
    Tensor
        A scalar. Of logits the Kullback-Leibler divergence from the teacher's softened distribution, times the
        temperature squared; of a regression the squared error; of a model without a head the squared error between the
        two means of token vectors, padding left out, averaged over their entries.

    Raises
    ------
    ValueError
        If the two outputs differ in shape, or are of a kind that is none of these.

    Notes
    -----
    The factor of temperature squared keeps the size of the gradient (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).
    The logits of tokens count where the task's loss counts them: where the label is not -100, of a causal model one
    position earlier. Without labels all but padding counts.

    Without a head the means are compared, not single token vectors: the mean is what such a model is used for
    (sentence embeddings), every text has one whatever its length, and the small cores need not spend themselves on
    directions of token vectors that average out.
    """
    if "logits" in answer:
        config = student.config
        kind = getattr(config, "problem_type", None)
        if kind == "multi_label_classification":
            raise ValueError("teacher: got a multi-label head, expected one of single labels, tokens or a regression")
        if "logits" not in target:
            raise ValueError(
                f"teacher: its output has {', '.join(target)}, that of the {type(student).__name__} logits; "
                "expected a teacher with the same head"
            )
        given, wanted = _counted(student, answer["logits"], target["logits"], inputs)
        if kind == "regression" or given.shape[-1] == 1:
            total = (given - wanted).square().sum() / given.shape[-1]
        else:
            total = temperature**2 * nn.functional.kl_div(
                torch.log_softmax(given / temperature, -1),
                torch.log_softmax(wanted / temperature, -1),
                reduction="sum",
                log_target=True,
            )
        return total / (max(1, len(given)) if n_items is None else n_items)
    if "last_hidden_state" in answer:
        given, wanted = answer["last_hidden_state"].float(), target["last_hidden_state"].float()
        _check_shapes(given, wanted)
        mask = inputs.get("attention_mask")
        return nn.functional.mse_loss(masked_mean(given, mask), masked_mean(wanted, mask))
    raise ValueError(
        f"teacher: the output of a {type(student).__name__} has {', '.join(answer)}; expected logits, or "
        "last_hidden_state of a model without a head"
    )


def masked_mean(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the token vectors, padding left out: (batch, length, dimension) to (batch, dimension).

    Examples
    --------
    >>> masked_mean(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    if mask is None:
        return vectors.mean(1)
    weights = mask[..., None].to(vectors.dtype)
    return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1)


def is_causal(model: nn.Module) -> bool:
    """Whether position t of the logits is about token t + 1."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _counted(student: nn.Module, given: Tensor, wanted: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The rows of the logits, (rows, classes), that the task's loss counts, in float32."""
    _check_shapes(given, wanted)
    if given.ndim == 3:
        labels, mask = inputs.get("labels"), inputs.get("attention_mask")
        if labels is not None and is_causal(student):
            given, wanted, keep = given[:, :-1], wanted[:, :-1], labels[:, 1:] != IGNORED
        elif labels is not None:
            keep = labels != IGNORED
        else:
            keep = mask.bool() if mask is not None else torch.ones_like(given[..., 0], dtype=torch.bool)
        given, wanted = given[keep], wanted[keep]
    return given.float(), wanted.float()


def _check_shapes(given: Tensor, wanted: Tensor) -> None:
    if given.shape != wanted.shape:
        raise ValueError(
            f"teacher: its output has shape {tuple(wanted.shape)}, the student's {tuple(given.shape)}; pass the dense "
            "model that was compressed, with the same head"
        )
