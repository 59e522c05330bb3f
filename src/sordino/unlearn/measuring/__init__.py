"""What a model says of records, and what those numbers are: scores, metrics, and the evaluations of TOFU and MUSE."""
