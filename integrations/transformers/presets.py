"""What is known of architectures: which modules to compress, and the paper's shapes."""

# The word embedding, the encoder's linear layers and the pooler, as in Liu et al. (ACL 2021): not the heads, and not
# what maps an embedding to the hidden size (ALBERT's embedding_hidden_mapping_in, MobileBERT's
# embedding_transformation). Whole names, with or without the base model's prefix.
_BERT = r"(.*\.)?(word_embeddings|encoder\.layer\.\d+\.(.*\.)?(query|key|value|dense)|pooler\.dense)"

TARGETS_OF_ARCHITECTURE = {
    "albert": r"(.*\.)?(word_embeddings|attention\.(query|key|value|dense)|ffn|ffn_output|pooler)",
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": r"(.*\.)?(word_embeddings|attention\.(q|k|v|out)_lin|ffn\.lin[12])",
    "mobilebert": _BERT,  # with its bottlenecks and the stacked feed-forward networks
}

# The shapes of the paper's tables, by the size of the weight (out x in, or vocabulary x dimension); 30522 words are
# padded to 30720 inside. Other sizes are cut into balanced factors.
PAPER_SHAPES = {
    (30000, 128): ((5, 10, 10, 10, 6), (2, 2, 4, 4, 2)),
    (30522, 768): ((5, 8, 8, 8, 12), (4, 4, 4, 4, 3)),
    (3072, 768): ((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)),
    (768, 3072): ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
    (768, 768): ((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)),
}
