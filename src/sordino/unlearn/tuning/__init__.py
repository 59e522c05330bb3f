"""How approximate methods tune a model: their settings and steps, the reference, what stays, and the search."""
