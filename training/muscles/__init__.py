"""Lean mass of the hip's muscles from a radiograph, learned on phantoms: targets, shards, network, evaluation.

Source of the task: MSKdeX (Gu 2023, arXiv 2305.19920), one output per muscle whose sum is its mass.
"""
