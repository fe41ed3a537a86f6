"""What is minimised: small pure terms, and the weighted sum of them (objective.py)."""

SOURCE = 'source'  # the name of the source's network among those that terms ask; the others are teachers
