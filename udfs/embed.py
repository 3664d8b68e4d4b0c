"""UDFs that embed text with a model; they need the extra ``geneva-backfill[embed]``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

import geneva


def SentenceEmbedding(
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    *,
    dimensions: int = 384,
    revision: str | None = None,
    device: str | None = None,
    normalize: bool = True,
    model_batch_size: int = 32,
    num_gpus: float = 0.0,
) -> geneva.UDF:
    """Make a UDF that embeds texts with a sentence-transformers model.

    The model is loaded once per applier, when the applier starts; declaring the UDF and binding
    it to a column need neither the model nor the package.

    Parameters
    ----------
    model
        Name of a model, or a directory that every applier sees.
    dimensions
        Length of the model's vectors. The column's type says it, so it must be known before
        the model is loaded; an applier refuses a model that disagrees.
    revision
        Commit or tag of the model. Weights are not part of the UDF's digest: pin them here, so
        that another revision is another UDF.
    device
        ``"cpu"``, ``"cuda"`` ...; the package chooses by default.
    normalize
        Scale vectors to length 1.
    model_batch_size
        Texts per forward pass.
    num_gpus
        GPUs that each applier reserves.

    Returns
    -------
    geneva.UDF
        Reads ``text``; gives a fixed-size list of float32. Null becomes null.

    Raises
    ------
    ImportError
        On the applier: sentence-transformers is not installed there.
    ValueError
        On the applier: the model's vectors have another length.

    Examples
    --------
    >>> embed = SentenceEmbedding(num_gpus=1)
    >>> embed.input_columns, embed.data_type, embed.num_gpus
    (('text',), FixedSizeListType(fixed_size_list<item: float>[384]), 1)
    """
    declare = geneva.udf(
        data_type=pa.list_(pa.float32(), dimensions), num_gpus=num_gpus, name="SentenceEmbedding"
    )
    declared = declare(_SentenceEmbedding)
    made: geneva.UDF = declared(model, dimensions, revision, device, normalize, model_batch_size)
    return made


class _SentenceEmbedding:
    def __init__(
        self,
        model: str,
        dimensions: int,
        revision: str | None,
        device: str | None,
        normalize: bool,
        model_batch_size: int,
    ) -> None:
        # Imported here: only appliers need torch, and `import udfs.embed` must stay quick.
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                f"SentenceEmbedding needs sentence-transformers, which cannot be imported here "
                f"({error}): pip install 'geneva-backfill[embed]'"
            ) from error
        self._model = SentenceTransformer(model, revision=revision, device=device)
        found = self._model.get_embedding_dimension()
        if found != dimensions:
            raise ValueError(
                f"the vectors of {model!r} have {found} dimensions, not {dimensions}: "
                f"declare SentenceEmbedding({model!r}, dimensions={found})"
            )
        self._dimensions = dimensions
        self._normalize, self._batch_size = normalize, model_batch_size

    def __call__(self, text: pa.Array) -> pa.Array:
        present = text.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(text), self._dimensions), np.float32)
        if present.any():
            vectors[present] = self._model.encode(
                text.drop_null().to_pylist(),
                batch_size=self._batch_size,
                normalize_embeddings=self._normalize,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), self._dimensions, mask=text.is_null()
        )
