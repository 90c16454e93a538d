"""Giving a classifier to others: its model card, and the way to the Hugging Face Hub."""
