"""What is transferred: networks as ordered named stages, behind one functional seam (network.py)."""
