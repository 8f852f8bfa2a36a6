"""Who may call, and how much may be taken: tenants, members, proxy tokens, limits and the admission scripts."""
