"""Faults done to the running product, counted: ``make faults`` and ``make soak``.

The product is a black box here: real processes, HTTP from outside, signals, and the database read
for the verdict alone.
"""
