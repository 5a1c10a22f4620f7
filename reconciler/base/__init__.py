"""The floor of the house: words every layer uses, with no domain knowledge and no third party but blake3.

Errors with their exit codes, diagnostics, clocks, times and quantities, digests, the ``Disk`` port, layouts,
named crash points. ``api`` and ``planning`` import only the modules here that do no I/O.
"""
