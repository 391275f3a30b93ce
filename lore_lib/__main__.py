"""python -m lore_lib is the command line, for environments whose scripts are not on PATH."""

from lore_lib.cli import app

if __name__ == "__main__":
    app()
