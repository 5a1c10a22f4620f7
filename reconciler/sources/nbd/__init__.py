"""NBD servers that this process starts for itself, and what is asked of them.

``servers`` runs one program and a few connections to it, ``requests`` asks over a connection, ``qemu`` knows the words
of qemu's tools, ``bindings`` finds libnbd.
"""
