"""Certificates of deletions: written, read, shown and checked; no torch is loaded."""
