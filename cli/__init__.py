"""The ``textmill`` command.

Imports core alone at the top of its modules; the rest inside the command that needs it.
"""
