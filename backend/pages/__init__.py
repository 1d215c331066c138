"""The HTML pages. Everything works without JavaScript."""
