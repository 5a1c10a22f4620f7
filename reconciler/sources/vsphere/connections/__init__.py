"""The way to one vCenter: trust, login, calls, and the services beside its API."""
