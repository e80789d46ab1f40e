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
DECODER = {
    "vocab_size": 61,
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    # none ends a text: generation always has the length that was asked for
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SETTINGS = {
    "albert": ALBERT,
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "distilbert": {
        "vocab_size": 61,
        "dim": 12,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    },
    "mobilebert": {
        **BERT,
        "hidden_size": 16,
        "embedding_size": 8,
        "intra_bottleneck_size": 8,
        "num_feedforward_networks": 2,
    },
    "gpt2": {
        "vocab_size": 61,
        "n_embd": 12,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    },
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gemma3_text": DECODER,
    "mixtral": {**DECODER, "num_local_experts": 2},
    "qwen3_moe": {**DECODER, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "bart": {
        "vocab_size": 61,
        "d_model": 12,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
        "init_std": 0.3,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "vit": {
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "initializer_range": 0.3,
    },
}


def albert(kind: str = "AlbertModel", seed: int = 0, **settings):
    return build(kind, transformers.AlbertConfig(**{**ALBERT, **settings}), seed)


def bert(kind: str = "BertModel", seed: int = 0, **settings):
    return build(kind, transformers.BertConfig(**{**BERT, **settings}), seed)


def family(model_type: str, kind: str, seed: int = 0, **settings):
    """A model of any of the families in ``SETTINGS``, by the name of its class."""
    return build(kind, transformers.AutoConfig.for_model(model_type, **{**SETTINGS[model_type], **settings}), seed)


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


def pixels(seed: int = 0, size: int = 4):
    """Images for a vision model."""
    return {"pixel_values": torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}


@torch.no_grad()
def answer(model, inputs=None):
    """The first output of a model in evaluation mode; its mode is left as it was."""
    training = model.training
    result = model.eval()(**(inputs if inputs is not None else batch()))[0]
    model.train(training)
    return result
