"""Where examples come from: sources, splits, preprocessing of each kind of example, and the loader."""
