"""Usage in the management API."""
