"""The step of a decoder in C++, and how the machine's own compiler makes it."""
