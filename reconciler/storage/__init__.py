"""Where bytes stay: the StorageUnit port, unit identities, and the unit types.

``units`` is the port with its duties; ``identities`` says who a unit is; ``directory`` keeps transparent files;
``dedupe`` keeps each segment once; ``opening`` turns a manifest's words into an opened unit.
"""
