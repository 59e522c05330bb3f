"""Fine-tune language models on private data, and know what leaked."""

__version__ = "0.1.0"
