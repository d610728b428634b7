"""Which policy is in service: versions behind a gate, an audit trail, and a server that follows the champion."""
