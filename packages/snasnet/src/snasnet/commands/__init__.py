"""The commands of the program `snasnet`, by what they work on."""
