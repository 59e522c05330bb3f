"""Differential privacy: plan, sampling, clipping, noise, accounting."""
