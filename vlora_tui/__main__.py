"""``python -m vlora_tui``."""

import sys

from vlora_tui.cli import main

if __name__ == "__main__":
    sys.exit(main())
