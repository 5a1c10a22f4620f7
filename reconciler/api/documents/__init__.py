"""The JSON that commands print: pinned shapes, one module per group of commands.

Text for people is rendered from these same values, so the two cannot disagree. ``registry.DOCUMENTS`` lists them.
"""
