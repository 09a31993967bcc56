"""`autotune`, and `python -m autotune`."""

from __future__ import annotations

from autotune.ranks import interrupt


def main() -> None:
    """Entry point. Ctrl-C is heeded from here on, while the modules of the command line load."""
    interrupt.install()
    from autotune.cli.main import main

    main()


if __name__ == "__main__":
    main()
