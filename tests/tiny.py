"""Tiny models with random weights, large enough to tell a right result from a wrong one."""

from __future__ import annotations

import torch
import transformers

ALBERT = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
BERT = {
    "vocab_size": 61,  # prime: the vocabulary must be padded
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def albert(kind: str = "AlbertModel", seed: int = 0, **settings):
    return build(kind, transformers.AlbertConfig(**{**ALBERT, **settings}), seed)


def bert(kind: str = "BertModel", seed: int = 0, **settings):
    return build(kind, transformers.BertConfig(**{**BERT, **settings}), seed)


def build(kind: str, config, seed: int):
    """In evaluation mode, every bias drawn at random too: a forgotten one must show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.3)
    return model.eval()


def batch(seed: int = 0, size: int = 4, length: int = 9, vocabulary: int = 60):
    """Ids with padding at the end of every row but the first; padding positions hold ids that would show."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (size, length), generator=generator)
    lengths = torch.tensor([length, *torch.randint(2, length, (size - 1,), generator=generator).tolist()])
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}


@torch.no_grad()
def answer(model, inputs=None):
    """The first output of a model in evaluation mode; its mode is left as it was."""
    training = model.training
    result = model.eval()(**(inputs if inputs is not None else batch()))[0]
    model.train(training)
    return result
