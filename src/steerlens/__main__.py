"""`python -m steerlens`."""

from steerlens.cli import main

if __name__ == "__main__":
    main()
