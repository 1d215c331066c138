"""The test suite: unit (no sockets), integration (real servers), acceptance (real processes)."""
