"""`python -m pivot`, so that `accelerate launch -m pivot run ...` works."""

from pivot.cli import main

if __name__ == "__main__":
    main()
