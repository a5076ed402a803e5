"""What is checked instead of believed: of the library before a reduction, of every prompt and step under it."""
