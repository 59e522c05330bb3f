"""Data extraction: what can be pulled out of the model, and how much of it is the fine-tuning's fault?"""
