"""Embed sentences with sentence-transformers, from a folder of transformers or one of its own.

    python embed_sentences.py FOLDER vectors.npy "A first sentence." "A second one." [--save OTHER_FOLDER]

Prints the matrix of similarities as JSON; ``--save`` writes a folder that ``SentenceTransformer(folder)`` opens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tnmpo.integrations.transformers  # noqa: F401
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer


def open_model(folder: Path) -> SentenceTransformer:
    if (folder / "modules.json").is_file():
        return SentenceTransformer(str(folder), device="cpu")
    transformer = Transformer(str(folder), max_seq_length=256)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()

    model = open_model(arguments.folder)
    vectors = model.encode(arguments.sentences, show_progress_bar=False)
    np.save(arguments.vectors, vectors)
    print(json.dumps(model.similarity(vectors, vectors).tolist()))
    if arguments.save is not None:
        model.save(str(arguments.save))


if __name__ == "__main__":
    main()
