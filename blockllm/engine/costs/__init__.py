"""What spans cost, by profile or observation, and how many rows a turn may have."""
