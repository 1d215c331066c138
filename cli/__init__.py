"""The ``textmill`` command.

At module level it imports core only; everything else is imported inside the command that needs it.
"""
