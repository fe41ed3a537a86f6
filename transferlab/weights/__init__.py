"""Foreign weights: read from any file, mapped to our paths, and written back."""
