"""The words users write: the manifest kinds, frozen and strict, and (in ``documents``) the JSON that commands print.

``registry`` lists the kinds. Nothing here reads a file, a clock or another object: references between objects are
checked in ``intake``, decisions made in ``planning``.
"""
