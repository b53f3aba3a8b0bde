"""`python -m raymeta`, so that a Ray job's working directory needs no install."""

from raymeta.cli import main

if __name__ == "__main__":
    main()
