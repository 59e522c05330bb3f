"""Attacks, one file each: file name = attack name = function name."""
