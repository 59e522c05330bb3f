"""Membership inference: was this record in the training data? One score a file; higher = member."""
