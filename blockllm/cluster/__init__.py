"""The agent process, the link to it, and its supervisor."""
