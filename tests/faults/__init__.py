"""Inject faults into the running product and count the effects: ``make faults``, ``make soak``.

The product is a black box: real processes, HTTP requests and signals from outside. The database is
read only for the verdict.
"""
