"""Methods that aren't a logit loss alone, and the controls: one file each."""
