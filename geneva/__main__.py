"""``python -m geneva`` is ``geneva``."""

from geneva.cli import main

if __name__ == "__main__":
    main()
