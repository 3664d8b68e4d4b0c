"""Tasks on workers: read, apply the UDF, checkpoint, write the column file."""
