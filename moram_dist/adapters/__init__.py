"""Adapters: linear layers of a frozen model with an update added to their output."""
