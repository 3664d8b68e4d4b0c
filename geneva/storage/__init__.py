"""Where bytes go: the Lance table, and the engine's own files beside it."""

from geneva.storage.compat import import_pandas_later

import_pandas_later()  # before lance is imported
