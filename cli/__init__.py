"""The ``textmill`` command. Imports core alone at its top; the rest inside the command that needs it."""
