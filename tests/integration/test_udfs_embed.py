"""udfs.embed: what happens without the package always, and with it where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geneva import GenevaError
from tests.support.tables import assert_table_invariants, column, make_table
from udfs.embed import SentenceEmbedding

TEXTS = ["red apple", "green apple", None, "blue sky", "red apple", ""]


def test_missing_package_without_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # None in sys.modules is how Python itself says "not importable", installed or not.
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    table = make_table(tmp_path, data=pa.table({"text": TEXTS}), fragments=1)
    table.add_columns({"vector": SentenceEmbedding()})  # declaring and binding need no package
    with pytest.raises(GenevaError, match=r"pip install 'geneva-backfill\[embed\]'"):
        table.backfill("vector", executor="local", on_error="null")
    assert column(table, "vector") == [None] * len(TEXTS)


def test_import_that_loads_torch():
    assert "torch" not in vars(sys.modules["udfs.embed"])
    assert SentenceEmbedding(dimensions=32).data_type == pa.list_(pa.float32(), 32)


def test_model_that_is_no_other_udf():
    digests = {
        SentenceEmbedding().digest,
        SentenceEmbedding("another").digest,
        SentenceEmbedding(revision="abc").digest,
        SentenceEmbedding(dimensions=12).digest,
    }
    assert len(digests) == 4


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a real, untrained BERT of 32 dimensions, made here without a network.

    Skips where the extra ``embed`` (torch, sentence-transformers) is not installed: the two tests
    below are the only ones that need it.
    """
    why = "the extra `embed` is not installed: pip install -e '.[embed]' runs this test"
    sentence_transformers = pytest.importorskip("sentence_transformers", reason=why)
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "apple", "sky"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder / "bert")
    bert = modules.Transformer(str(folder / "bert"))
    pooling = modules.Pooling(bert.get_embedding_dimension())
    saved = folder / "sentence"
    sentence_transformers.SentenceTransformer(modules=[bert, pooling]).save(str(saved))
    return str(saved)


def test_embedding_that_is_not_the_models(tmp_path: Path, tiny_model: str):
    from sentence_transformers import SentenceTransformer

    table = make_table(tmp_path, data=pa.table({"text": TEXTS}), fragments=2)
    table.add_columns({"vector": SentenceEmbedding(tiny_model, dimensions=32, device="cpu")})
    table.backfill("vector", executor="local", concurrency=2)

    values = column(table, "vector")
    assert [v is None for v in values] == [t is None for t in TEXTS]
    expected = SentenceTransformer(tiny_model, device="cpu").encode(
        [t for t in TEXTS if t is not None], normalize_embeddings=True
    )
    assert np.allclose([v for v in values if v is not None], expected, atol=1e-5)
    assert_table_invariants(table)


def test_model_of_another_length_than_the_column(tmp_path: Path, tiny_model: str):
    table = make_table(tmp_path, data=pa.table({"text": TEXTS}), fragments=1)
    table.add_columns({"vector": SentenceEmbedding(tiny_model, device="cpu")})
    with pytest.raises(GenevaError, match="32 dimensions, not 384"):
        table.backfill("vector", executor="local")
