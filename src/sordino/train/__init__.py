"""Training: the one loop that steps an optimizer, its batches and its checkpoints."""
