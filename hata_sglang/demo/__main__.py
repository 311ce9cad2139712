"""``python -m hata_sglang.demo``: one question about a hidden fact, hata beside dense."""

import sys

from hata_sglang.demo.once import main

if __name__ == "__main__":
    sys.exit(main())
