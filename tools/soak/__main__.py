"""`python -m tools.soak`: see docs/soak.md."""

from tools.soak.run import main

main()
