"""Is a GPU kept busy: a sentence encoder over texts, against the same model in a bare loop?

Asked by name only, as ``python -m benchmarks gpu``: it needs a GPU and the extra ``embed``. The
model has the shape of all-MiniLM-L6-v2 (6 layers of 384, 22 million parameters), untrained, and a
tokenizer over a vocabulary of its own, so that nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import geneva
from benchmarks import tables
from benchmarks.measure import Answer, Scale, Side, alternate
from udfs.embed import SentenceEmbedding

_WORDS = 2000
_WORDS_PER_TEXT = 24
_BATCH = 256


def run(scale: Scale) -> list[Answer]:
    """One applier with the whole GPU, and two with half of it each, against a bare loop."""
    import torch
    from sentence_transformers import SentenceTransformer

    if not torch.cuda.is_available():
        return [Answer("a sentence encoder on a GPU", "(no bar)", "not asked: no GPU here", None)]
    rows = scale.rows(20_000)
    with tables.folder() as path:
        model = _model(path)
        texts = _texts(rows)
        tbl = tables.table(path, pa.table({"text": texts}), 20)
        encoder = SentenceTransformer(model, device="cuda")
        found: dict[str, np.ndarray[Any, Any]] = {}

        def loop() -> None:
            found["loop"] = encoder.encode(
                texts, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
            )

        sides: dict[str, Any] = {"bare loop": loop}
        for appliers in (1, 2):
            udf = SentenceEmbedding(
                model, device="cuda", model_batch_size=_BATCH, num_gpus=1 / appliers
            )
            sides[f"{appliers} appliers"] = Side(
                _filled(tbl, appliers), before=tables.warm(tbl, udf)
            )
        rounds = alternate(sides, scale.rounds)
        vectors = tbl.to_arrow()["c"].combine_chunks().flatten().to_numpy().reshape(rows, -1)
        far = float(np.abs(vectors - found["loop"]).max())
    name = torch.cuda.get_device_name()
    return [
        Answer(
            f"a sentence encoder on a GPU ({name}), {rows:,} texts, {n} appliers",
            "(no bar)",
            f"{rounds.ratio('bare loop', f'{n} appliers'):.2f}x as fast as a bare loop",
            None,
            f"{rounds.text()}; {rows / rounds.median(f'{n} appliers'):,.0f} texts a second; "
            f"values at most {far:.1e} from the loop's",
        )
        for n in (1, 2)
    ]


def _filled(tbl: geneva.Table, appliers: int) -> Any:
    return lambda: tbl.backfill("c", concurrency=appliers, progress=False)


def _texts(rows: int) -> list[str]:
    words = np.random.default_rng(5).integers(0, _WORDS, (rows, _WORDS_PER_TEXT))
    return [" ".join(f"w{w}" for w in text) for text in words.tolist()]


def _model(path: Path) -> str:
    """Make an untrained encoder; return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import (  # type: ignore[attr-defined, unused-ignore]
        BertConfig,
        BertModel,
        BertTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(_WORDS))]
    vocabulary = path / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizerFast(str(vocabulary)).save_pretrained(path / "bert")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    BertModel(config).save_pretrained(path / "bert")
    bert = modules.Transformer(str(path / "bert"))
    pooling = modules.Pooling(bert.get_embedding_dimension())
    saved = path / "sentence"
    SentenceTransformer(modules=[bert, pooling]).save(str(saved))
    return str(saved)
