"""Femora, hip bones and sacrum in a CT of the hip, with how sure the network is of each: a Bayesian 3D U-Net.

Learned on phantoms whose labels are known by construction. Method: Hiasa 2019, doi:10.1109/TMI.2019.2940555.
"""
