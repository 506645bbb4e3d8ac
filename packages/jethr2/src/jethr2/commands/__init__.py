"""The commands of the program `jethr2`, by what they work on."""
