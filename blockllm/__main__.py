"""`python -m blockllm` is the `blockllm` command."""

from blockllm.cli.main import main

if __name__ == "__main__":
    main()
