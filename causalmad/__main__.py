"""``python -m causalmad``: the command line."""

from causalmad.cli import main

if __name__ == "__main__":
    main()
