"""Measure a run: get answers from the model, write predictions, fill the score matrices."""
