"""The loop: observe, plan, dispatch, and again. ``passes`` is one turn, ``loop`` turns for ever, ``handovers`` asks a
living controller to act, ``bindings`` says which operation does which action, ``observations`` gathers the facts.
"""
