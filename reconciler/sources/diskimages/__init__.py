"""Machines as folders of disk images: raw files and block devices, qcow2, vmdk and vhdx.

``machines`` is the source (inventory and freeze), ``readings`` one frozen machine. A disk's kind is decided in
``formats``, which also refuses files that point outside their machine's folder. Raw disks are read directly (``raw``),
the others through ``qemu-nbd`` (``converted``). ``freezing`` judges whether anything moved while it was read,
``changes`` reads qcow2 bitmaps.
"""
