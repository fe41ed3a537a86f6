"""What is minimised: small pure terms, and the weighted sum of them (objective.py)."""
