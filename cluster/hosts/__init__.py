"""Ray and its hosts: joined or started, looked at before a run, and the places that a run reserves on them."""
