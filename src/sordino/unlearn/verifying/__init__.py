"""What may be said of a deletion: comparisons by equivalence tests, the rule of each tier, qualification, capacity."""
