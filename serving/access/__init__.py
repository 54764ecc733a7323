"""Who may call what: keys, tokens and certificates; tenants, roles and limits."""
