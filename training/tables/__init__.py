"""Tables of interactions: formats, columns, times and ids."""
