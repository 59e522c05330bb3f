"""The audit: attacks, controls and gates on a trained run or a model from elsewhere, from signals to a verdict."""
