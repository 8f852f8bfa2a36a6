"""Exports: one snapshot of the books, written in many formats with the same totals."""
