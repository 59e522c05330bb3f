"""Attacks on the prompt of a model: which records stood in it. One file each, each an `Attack` of the file's name."""
