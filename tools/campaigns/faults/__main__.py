"""`python -m tools.campaigns.faults`: see tools/campaigns/faults/run.py."""

from tools.campaigns.faults.run import main

main()
