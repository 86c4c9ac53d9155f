"""What blocks compute: one file per kind of layer, weights bound once at load."""
