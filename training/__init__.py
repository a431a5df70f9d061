"""Builds, trains, evaluates and exports the model that the node serves."""
