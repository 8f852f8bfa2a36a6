"""How fast the gateway is, measured beside a bare pass-through: ``make bench``, see docs/performance.md."""
