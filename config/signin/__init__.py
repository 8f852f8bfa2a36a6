"""Signing in to the admin: password, second factor, and the sessions that follow."""
