"""`python -m mixnas` is the command `mixnas`: processes of a training are started by it."""

from mixnas.cli import main

if __name__ == "__main__":
    main()
