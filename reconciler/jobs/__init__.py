"""Durable execution of callables that the layer above hands in; this package never knows what they do.

``engines`` is the port with its duties; ``embedded`` runs jobs on threads of the calling process. The truth about a
job is its row in the catalog: ``rows`` makes every write of a job's life there, ``runs`` is one attempt at work in this
process and says how it ended, ``heartbeats`` writes progress and picks up cancel flags.
"""
