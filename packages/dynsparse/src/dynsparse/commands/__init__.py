"""The commands of the program, by matter."""
