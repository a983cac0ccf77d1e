"""``python -m hptransfer``: the same as the ``hptransfer`` command."""

import sys

from hptransfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
