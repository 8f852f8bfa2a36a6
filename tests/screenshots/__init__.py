"""Pictures of the admin for the documentation, of a stack of their own: ``make screenshots``."""
