"""What a bundle can do beyond the plain test set: one condition is changed step by step, everything else is held.

Every figure comes from simulated radiographs of phantoms and says nothing about patients.
"""
