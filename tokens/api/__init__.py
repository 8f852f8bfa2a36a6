"""The management API: what finance's tools and automation call, with keys of its own (tokens.apikeys)."""
