"""What was learnt: exact evaluation and its metrics."""
