"""One file per group of routes; each has `routes(serving)`."""
