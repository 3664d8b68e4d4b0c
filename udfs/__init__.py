"""Ready UDFs, one module per modality, and `reading`, which binds them to columns of other names.

They use nothing but what ``import geneva`` offers, so each can be copied and changed.
"""

import geneva

__all__ = ["reading"]


def reading(udf: geneva.UDF, *columns: str) -> geneva.UDF:
    """Return the same UDF over other input columns.

    Parameters
    ----------
    udf
        Any UDF, such as ``udfs.text.char_count``.
    columns
        Columns, or paths such as ``meta.lang``, one per input and in their order.

    Returns
    -------
    geneva.UDF
        A new UDF; the one that was given stays as it is.

    Raises
    ------
    geneva.GenevaError
        The number of columns is not the number of inputs.

    Examples
    --------
    >>> from udfs.text import char_count
    >>> char_count.input_columns, reading(char_count, "source").input_columns
    (('text',), ('source',))
    """
    params = dict(udf.params)
    declare = geneva.udf(
        input_columns=list(columns),
        data_type=udf.data_type,
        batch_size=udf.batch_size,
        num_cpus=udf.num_cpus,
        num_gpus=udf.num_gpus,
        memory=udf.memory,
        runtime_env=udf.runtime_env,
        retry=udf.retry,
        instances=udf.instances,
        version=udf.version,
        params=None if udf.stateful else params,
        name=udf.name,
        reads_own_output=udf.reads_own_output,
    )
    declared = declare(udf.target)
    made: geneva.UDF = declared(**params) if udf.stateful else declared
    return made
