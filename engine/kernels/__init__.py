"""The decoder's step in C++, and its build by the machine's own compiler."""
