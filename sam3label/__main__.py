"""`python -m sam3label`."""

from sam3label.cli import main

if __name__ == "__main__":
    main()
