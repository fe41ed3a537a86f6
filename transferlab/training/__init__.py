"""How it is minimised: phases, partition, optimizer, the pure step, its compilation, and the one loop."""
