"""`autotune`, and `python -m autotune`."""

from __future__ import annotations

import gc

from autotune.ranks import interrupt


def main() -> None:
    """Entry point. Ctrl-C is heeded from here on, while the modules of the command line load."""
    interrupt.install()
    gc.disable()  # until the command begins: what is loaded stays
    from autotune.cli.main import main

    try:
        main()
    finally:
        gc.freeze()  # or Python looks for garbage among all of torch's modules as it ends, for 0.2 s or more


if __name__ == "__main__":
    main()
