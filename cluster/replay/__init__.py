"""The replay buffer in Redis: groups, their ledger, leases, task histories, and the server itself."""
