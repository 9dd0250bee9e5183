"""Benchmarks: what the mesh promises about speed and memory, measured beside its peers in one run.

``python -m benchmarks`` runs all of them, ``python -m benchmarks capture landed`` some.
"""
