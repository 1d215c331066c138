"""The worker side: claims jobs and decodes them. May import core and torch; never backend or Flask."""
