"""What the zoo learns by computing: measures, equivalents, stitches, surrogates, profiles."""
