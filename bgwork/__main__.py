"""`python -m bgwork` is `bgwork`."""

from bgwork.cli import main

if __name__ == "__main__":
    main()
