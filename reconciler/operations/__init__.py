"""What is done: each operation composes a source, a storage unit and the catalog, and nothing else knows all three.

Every operation may be killed anywhere and run again: the unit's commit makes an image visible, the catalog records it
afterwards, and ``recovery`` settles what a crash left in between.
"""
