"""The audit: attacks, controls and gates on a trained run, from signals to a verdict."""
