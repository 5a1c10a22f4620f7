"""The index of the files inside an image: what it says, how it lies beside the image, how it is searched.

``entries`` is one name of a file; ``columns`` packs many of them; ``pages`` cuts them into the pages that a unit stores
as the attachment ``files``; ``indexes`` reads such an attachment and builds one relative to a parent's. ``caches`` is
the search cache on the catalog's machine, a file of its own beside the catalog that can always be made anew from the
units; ``blocks`` are its rows, ``layouts`` how names lie in one, ``intervals`` which images a version is in,
``patterns`` what is searched for.
Nothing here knows storage units or guests: an attachment is whatever has pages.
"""
