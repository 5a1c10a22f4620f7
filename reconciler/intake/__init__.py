"""Manifests in: YAML with line and column, checked as a whole, handed on as desired state.

Start at ``estates.load``. In reading order: ``trees`` finds the files, ``events`` and ``documents`` turn text into
plain values that know where they stand, ``manifests`` makes api objects of them (``complaints`` puts what a model
refuses into words), ``references``, ``meanings`` and ``combinations`` check what objects say to each other,
``revisions`` names the result. ``codes`` lists every diagnostic.

Bad content is never an exception here: whatever lies in the files ends as objects or as diagnostics, all at once.
The only importer of ruamel.yaml.
"""
