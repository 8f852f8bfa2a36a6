"""The whole gateway under load while its processes die and its connections break; then three accounts are compared.

`python -m tests.chaos --seed 7 --minutes 2`, or `make chaos SEED=7 MINUTES=2`.
"""
