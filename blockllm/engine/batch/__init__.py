"""The rows of a turn as flat arrays, and the hops that carry parts of them."""
