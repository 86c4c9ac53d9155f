"""Standing campaigns: many inputs that no person wrote, held against what always has to be true."""
