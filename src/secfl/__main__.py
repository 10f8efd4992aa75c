"""`python -m secfl`: the command line."""

from secfl.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
